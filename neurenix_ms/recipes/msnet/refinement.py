"""Steps of conjugate gradients from an approximate potential, and its conductance by the energy.

A prediction of a network is a good start for a solver, and a few steps remove the errors of single
cells. The linear field with as many steps is the plain method to compare with.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def energy_conductivity(potential: Tensor, pores: Tensor) -> Tensor:
    """Compute the conductance of a box from the energy of a potential, relative to the empty box.

    Of all potentials that are -0.5 and 0.5 on the end faces, the solution has the smallest energy, which
    is its conductance. So the result is never too small, and its error is the energy of the error: of
    second order, where the mean flux has an error of first order. Where the error of the potential is
    large, the mean flux may be more accurate, since errors of both signs cancel in it.

    Args:
        potential: Potential at the centers of the cells; its values in solid have no effect.
        pores: 1 in pores, 0 in solid.

    Shape:
        `(B, 1, *S)` and `(B, 1, *S)` -> `(B,)`

    Examples:
        >>> potential = (torch.arange(8) + 0.5).view(1, 1, 8, 1) / 8 - 0.5
        >>> channel = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 8, 4)
        >>> energy_conductivity(potential.expand(1, 1, 8, 4), channel)
        tensor([0.5000])
    """
    first = (potential[:, :, 0] + 0.5).square() * pores[:, :, 0]
    last = (potential[:, :, -1] - 0.5).square() * pores[:, :, -1]
    total = 2 * (first + last).flatten(1).sum(1)  # the end faces are half a cell away
    for axis in range(2, pores.ndim):
        total = total + (potential.diff(dim=axis).square() * _open(pores, axis)).flatten(1).sum(1)
    return total * pores.shape[2] / pores[0, 0, 0].numel()


@torch.no_grad()
def refined(potential: Tensor, pores: Tensor, num_steps: Sequence[int]) -> list[Tensor]:
    """Return the potential after some numbers of steps of conjugate gradients.

    The steps are preconditioned by the number of neighbors of a cell, and by constants that are added to
    whole layers. Every step reduces the energy of the error.

    Args:
        potential: Approximate potential, such as a prediction, or the linear field.
        pores: 1 in pores that connect the end faces, 0 in solid.
        num_steps: Numbers of steps, in increasing order; 0 is the approximate potential itself.

    Shape:
        `(B, 1, *S)` and `(B, 1, *S)` -> list of `(B, 1, *S)`, 0 in solid

    Examples:
        >>> channel = torch.ones(1, 1, 6, 3, 3)
        >>> start = torch.zeros_like(channel)
        >>> refined(start, channel, [6])[0][0, 0, :, 0, 0]
        tensor([-0.4167, -0.2500, -0.0833,  0.0833,  0.2500,  0.4167])
    """
    if any(later < earlier for earlier, later in pairwise([0, *num_steps])):
        raise ValueError(f"num_steps must be increasing and at least 0, got {list(num_steps)}")
    matrix = _Conduction(pores)
    u = potential * pores
    residual = -matrix(u, end=0.5)
    direction = preconditioned = matrix.preconditioned(residual)
    product = _dot(residual, preconditioned)
    results = []
    for done, wanted in pairwise([0, *num_steps]):
        for _ in range(wanted - done):
            image = matrix(direction)
            length = product / _dot(direction, image).clamp(min=torch.finfo(u.dtype).tiny)
            u = u + length * direction
            residual = residual - length * image
            preconditioned = matrix.preconditioned(residual)
            before, product = product, _dot(residual, preconditioned)
            ratio = product / before.clamp(min=torch.finfo(u.dtype).tiny)
            direction = preconditioned + ratio * direction
        results.append(u)
    return results


class _Conduction:
    """The matrix of the equation: the flux out of every cell.

    Args:
        pores: 1 in pores, 0 in solid.
    """

    def __init__(self, pores: Tensor) -> None:
        self.pores = pores
        self.faces = [_open(pores, axis) for axis in range(2, pores.ndim)]
        neighbors = self(pores * 0, end=1.0, count=True)
        self.inverse_neighbors = pores / neighbors.clamp(min=1)
        areas = [2 * pores[:, :, :1], self.faces[0], 2 * pores[:, :, -1:]]
        self.areas = torch.cat(areas, dim=2).flatten(3).sum(3).clamp(min=1)

    def __call__(self, u: Tensor, end: float = 0.0, count: bool = False) -> Tensor:
        """Return the flux out of each cell; the end faces have the potentials `-end` and `end`.

        Args:
            u: Potential, 0 in solid.
            end: Potential of the last face.
            count: Return the number of neighbors, where an end face counts as two.
        """
        flux = torch.zeros_like(u)
        for axis, faces in enumerate(self.faces, start=2):
            n = u.shape[axis] - 1
            step = faces if count else u.diff(dim=axis) * faces
            flux.narrow(axis, 1, n).add_(step)
            flux.narrow(axis, 0, n).add_(step if count else -step)
        for layer, value in ((0, -end), (-1, end)):
            inside = self.pores[:, :, layer]
            flux[:, :, layer] += 2 * inside * (1 if count else u[:, :, layer] - value)
        return flux

    def preconditioned(self, residual: Tensor) -> Tensor:
        """Apply an approximate inverse: that of the diagonal, and that for constants of layers."""
        # the constants pass all of the residual before a layer through the faces in front of it
        before = residual.flatten(3).sum(3).cumsum(2)
        before = torch.cat([torch.zeros_like(before[:, :, :1]), before], dim=2)
        first = (before / self.areas).sum(2, keepdim=True) / (1 / self.areas).sum(2, keepdim=True)
        constants = ((first - before) / self.areas).cumsum(2)[:, :, :-1]
        constants = constants.view(*constants.shape, *[1] * (residual.ndim - 3))
        return residual * self.inverse_neighbors + constants * self.pores


def _open(pores: Tensor, axis: int) -> Tensor:
    """Return 1 at the faces between two pore cells along an axis."""
    n = pores.shape[axis] - 1
    return pores.narrow(axis, 0, n) * pores.narrow(axis, 1, n)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of every sample, in a shape that broadcasts."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))
