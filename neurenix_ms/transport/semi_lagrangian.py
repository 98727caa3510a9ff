"""Semi-Lagrangian advection: follow the flow back from points of every cell."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from neurenix_ms.transport.grid import Boundary, extended_field, extended_vector
from neurenix_ms.transport.interpolation import (
    RIM,
    at_point,
    derivative,
    interpolated,
    lagrange,
    spline,
    spline_coefficients,
)


def remapped(
    mass: Tensor,
    displacement: Tensor,
    boundaries: Sequence[Boundary],
    points: Sequence[tuple[float, tuple[float, ...]]],
) -> Tensor:
    """Return the mass per cell after a step, from the displacements to the departure points.

    The density at the departure point of every Gauss point of a cell, times the determinant of the
    departure points' gradient, is averaged over the points.

    Args:
        mass: Mass per cell before the step.
        displacement: From the center of every cell to its departure point, in cells.
        boundaries: Boundary of every axis.
        points: Weights and offsets of the Gauss points of a cell.

    Shape:
        `(B, 1, *S)` and `(B, D, *S)` -> `(B, 1, *S)`
    """
    coefficients = extended_field(spline_coefficients(mass, boundaries), boundaries, RIM)
    volume = extended_field(_volume_ratio(displacement, boundaries), boundaries, RIM)
    moved = extended_vector(displacement, boundaries, RIM).split(1, dim=1)
    cells, sizes = _cells(mass), mass.shape[2:]
    total = torch.zeros_like(mass)
    for share, places in points:
        departures = [
            (cell + place + _at(component, places, sizes)).flatten(1)
            for cell, place, component in zip(cells, places, moved, strict=True)
        ]
        density = interpolated(coefficients, departures, boundaries, spline).view_as(mass)
        total = total + share * density * _at(volume, places, sizes)
    return total


def departures_of(
    start: Tensor, end: Tensor, boundaries: Sequence[Boundary], substeps: int
) -> Tensor:
    """Return the displacement from the center of every cell to its departure point.

    The flow is followed back for one step by the midpoint rule.

    Args:
        start: Velocity at the start of the step, in cells per step.
        end: Velocity at its end; it changes linearly in between.
        boundaries: Boundary of every axis.
        substeps: Steps of the midpoint rule.

    Shape:
        twice `(B, D, *S)` -> `(B, D, *S)`, in cells
    """
    begin = extended_vector(start, boundaries, RIM)
    change = extended_vector(end - start, boundaries, RIM)
    cells, h = _cells(start), 1 / substeps

    def velocity(time: float, moved: Tensor) -> Tensor:
        at = [
            (cell + m.unsqueeze(1)).flatten(1)
            for cell, m in zip(cells, moved.unbind(1), strict=True)
        ]
        return interpolated(begin + time * change, at, boundaries, lagrange).view_as(moved)

    moved = torch.zeros_like(start)
    for step in range(substeps):
        time = 1 - step * h
        middle = moved - h / 2 * velocity(time, moved)
        moved = moved - h * velocity(time - h / 2, middle)
    return moved


def _volume_ratio(displacement: Tensor, boundaries: Sequence[Boundary]) -> Tensor:
    """Return the determinant of the gradient of the departure points."""
    rows = []
    for i in range(displacement.shape[1]):
        component = displacement[:, i]
        rows.append(
            [
                derivative(component, 1 + axis, boundary, odd=axis == i) + (axis == i)
                for axis, boundary in enumerate(boundaries)
            ]
        )
    return _determinant(rows).unsqueeze(1)


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """Return the determinant of a matrix of tensors, by expansion along its first row."""
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = [row[:column] + row[column + 1 :] for row in rows[1:]]
        terms.append((-1) ** column * entry * _determinant(minor))
    return sum(terms[1:], start=terms[0])


def _cells(x: Tensor) -> list[Tensor]:
    """Return the coordinates of all cells along every axis, `(1, 1, *S)` each."""
    axes = [torch.arange(n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
    return [grid[None, None] for grid in torch.meshgrid(*axes, indexing="ij")]


def gauss_points(points: int, spatial_dims: int) -> list[tuple[float, tuple[float, ...]]]:
    """Return weights and offsets of the Gauss points of a cell with edges at -0.5 and 0.5."""
    offsets, weights = np.polynomial.legendre.leggauss(points)
    return [
        (
            math.prod(float(weights[k]) / 2 for k in point),
            tuple(float(offsets[k]) / 2 for k in point),
        )
        for point in product(range(points), repeat=spatial_dims)
    ]


def _at(x: Tensor, places: Sequence[float], sizes: Sequence[int]) -> Tensor:
    """Interpolate an extended field at one point of every cell."""
    for axis, (place, size) in enumerate(zip(places, sizes, strict=True)):
        x = at_point(x, 2 + axis, place, size)
    return x
