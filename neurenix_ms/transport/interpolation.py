"""Interpolation at arbitrary positions, and of cell averages at fixed points of their cells."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from neurenix_ms.transport.grid import Boundary, extended, moving, weighted_sum

RIM = 2  # cells beyond a boundary that the kernels reach
Kernel = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


def lagrange(at: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the first of the four nearest cells, and their weights in cubic interpolation."""
    first = at.detach().floor()
    t = at - first
    return first - 1, [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -t * (t + 1) * (t - 2) / 2,
        t * (t + 1) * (t - 1) / 6,
    ]


def spline(at: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the first of the three nearest cells, and their quadratic B-splines."""
    nearest = (at.detach() + 0.5).floor()
    t = at - nearest
    return nearest - 1, [(0.5 - t) ** 2 / 2, 0.75 - t**2, (0.5 + t) ** 2 / 2]


def interpolated(
    x: Tensor, positions: Sequence[Tensor], boundaries: Sequence[Boundary], kernel: Kernel
) -> Tensor:
    """Interpolate an extended field at positions in its cells.

    Args:
        x: The field, extended by `RIM` cells on both sides of every axis.
        positions: For every axis, the positions in cells of the field without its extension. Positions
            beyond a wall are moved to the wall.
        boundaries: Boundary of every axis.
        kernel: Returns the first of the nearest cells, and the weights of them all.

    Shape:
        `(B, C, *S + 2 * RIM)` and D times `(B, P)` -> `(B, C, P)`
    """
    shape = x.shape[2:]
    indices, weights = [], []
    for axis, (at, boundary) in enumerate(zip(positions, boundaries, strict=True)):
        n = shape[axis] - 2 * RIM
        at = (at + 0.5) % n - 0.5 if boundary == "periodic" else at.clamp(-0.5, n - 0.5)
        first, shares = kernel(at)
        start, stride = first.nan_to_num().long() + RIM, math.prod(shape[axis + 1 :])
        indices.append([(start + k) * stride for k in range(len(shares))])
        weights.append(shares)
    flat = x.flatten(2)
    total = torch.zeros_like(flat[..., :1])
    for taps in product(range(len(weights[0])), repeat=len(shape)):
        index, weight = indices[0][taps[0]], weights[0][taps[0]]
        for axis, tap in enumerate(taps[1:], start=1):
            index, weight = index + indices[axis][tap], weight * weights[axis][tap]
        value = flat.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1))
        total = total + value * weight.unsqueeze(1)
    return total


def spline_coefficients(averages: Tensor, boundaries: Sequence[Boundary]) -> Tensor:
    """Return the coefficients of the quadratic spline that has the given cell averages.

    Shape:
        `(B, C, *S)` -> the same
    """
    for axis, boundary in enumerate(boundaries):
        matrix = _inverse_averages(averages, 2 + axis, boundary)
        averages = (averages.movedim(2 + axis, -1) @ matrix).movedim(-1, 2 + axis)
    return averages


def _inverse_averages(x: Tensor, dim: int, boundary: Boundary) -> Tensor:
    """Return the inverse of the symmetric matrix of the averages of quadratic B-splines, (1, 4, 1) / 6.

    Its entries at a distance of k cells are `sqrt(3) * z**k` with `z = sqrt(3) - 2`, added up over all
    periods; at walls also over the mirrored cells.
    """
    n = x.shape[dim]
    cells = torch.arange(n, device=x.device)
    period = n if boundary == "periodic" else 2 * n
    distances = [(cells[:, None] - cells).abs()]
    if boundary == "wall":
        distances.append(cells[:, None] + cells + 1)
    z = torch.full((), math.sqrt(3) - 2, dtype=torch.float64, device=x.device)
    entries = [z**k + z ** (period - k) for k in distances]
    return (sum(entries[1:], start=entries[0]) * (math.sqrt(3) / (1 - z**period))).to(x.dtype)


def at_point(x: Tensor, dim: int, offset: float, size: int) -> Tensor:
    """Interpolate along an extended dimension at an offset from the centers of its cells.

    Args:
        x: A field extended by `RIM` cells on both sides of `dim`.
        dim: The dimension.
        offset: Offset in cells, from -0.5 to 0.5.
        size: Number of cells without the extension.

    Returns:
        The field at the offset from every cell, by polynomials of degree four.
    """
    near = range(-RIM, RIM + 1)
    weights = [math.prod([(offset - k) / (j - k) for k in near if k != j]) for j in near]
    used = [(cell, w) for cell, w in zip(moving(x, dim, size), weights, strict=True) if w]
    return weighted_sum(*zip(*used, strict=True))


def derivative(x: Tensor, dim: int, boundary: Boundary, odd: bool) -> Tensor:
    """Return the derivative per cell along a dimension, of fourth order."""
    a, b, _, d, e = moving(extended(x, dim, boundary, RIM, odd), dim, x.shape[dim])
    return (8 * (d - b) - (e - a)) / 12
