"""Advection in flux form: a finite-volume scheme of fifth order with a limit on outflow."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from neurenix_ms._core.hooks import DENSE
from neurenix_ms._core.tracing import sizes_are_open
from neurenix_ms.transport.fluxes import after_inflow, through_open_faces, with_limited_outflow
from neurenix_ms.transport.grid import Boundary, extended, moving, weighted_sum

RIM = 3
UPWIND = (2 / 60, -13 / 60, 47 / 60, 27 / 60, -3 / 60)


def advected(
    mass: Tensor,
    start: Tensor,
    end: Tensor,
    boundaries: Sequence[Boundary],
    mask: Tensor | None,
    substeps: int,
) -> Tensor:
    """Return the mass per cell after a step.

    The value at a face is that of the polynomial of degree four with the averages of five cells, three
    of them upwind. Time is advanced by the third-order Runge-Kutta scheme whose stages are convex
    combinations of Euler steps, each of which keeps the mass non-negative.

    Args:
        mass: Mass per cell before the step.
        start: Velocity at the start of the step, in cells per step.
        end: Velocity at its end; it changes linearly in between.
        boundaries: Boundary of every axis.
        mask: Open cells; all by default.
        substeps: Runge-Kutta steps.

    Shape:
        `(B, 1, *S)` and twice `(B, D, *S)` -> `(B, 1, *S)`
    """
    h = 1 / substeps

    def courant_numbers(velocity: Tensor) -> list[Tensor]:
        faces = through_open_faces(_at_faces(velocity, boundaries), boundaries, mask)
        return [h * v for v in faces]

    begin = courant_numbers(start)
    last = begin if end is start else courant_numbers(end)
    _check_courant([begin, last], substeps)
    change = None if last is begin else [b - a for a, b in zip(begin, last, strict=True)]

    def euler(mass: Tensor, time: float) -> Tensor:
        now = begin
        if change is not None:
            now = [a + time * b for a, b in zip(begin, change, strict=True)]
        fluxes = _upwind_fluxes(mass, now, boundaries)
        return after_inflow(mass, with_limited_outflow(fluxes, mass))

    for step in range(substeps):
        time = step * h
        first = euler(mass, time)
        second = 3 / 4 * mass + 1 / 4 * euler(first, time + h)
        mass = mass / 3 + 2 / 3 * euler(second, time + h / 2)
    return mass


def _at_faces(velocity: Tensor, boundaries: Sequence[Boundary]) -> list[Tensor]:
    """Return the normal velocity at the upper face of every cell, of fourth order, for every axis."""
    faces = []
    for dim, (v, boundary) in enumerate(zip(velocity.split(1, dim=1), boundaries, strict=True), 2):
        a, b, c, d = moving(extended(v, dim, boundary, 2, odd=True), dim, v.shape[dim])[1:]
        faces.append((9 * (b + c) - (a + d)) / 16)
    return faces


def _upwind_fluxes(
    mass: Tensor, velocities: Sequence[Tensor], boundaries: Sequence[Boundary]
) -> list[Tensor]:
    fluxes = []
    for dim, (v, boundary) in enumerate(zip(velocities, boundaries, strict=True), start=2):
        cells = moving(extended(mass, dim, boundary, RIM), dim, mass.shape[dim])[1:]  # -2 to 3
        below, above = weighted_sum(cells[:5], UPWIND), weighted_sum(cells[:0:-1], UPWIND)
        fluxes.append(v * torch.where(v > 0, below, above))
    return fluxes


def _check_courant(velocities: Sequence[Sequence[Tensor]], substeps: int) -> None:
    """Raise if a flow crosses more than a cell in a substep, where its speed is known."""
    first = velocities[0][0]
    if sizes_are_open() or type(first) not in DENSE or first.is_meta or first.numel() == 0:
        return
    speeds = (reduce(torch.add, (v.detach().abs() for v in axes)) for axes in velocities)
    fastest = max(float(speed.max()) for speed in speeds)
    if fastest > 1:
        raise ValueError(
            f"the flow must cross at most 1 cell in a substep, the sum over the axes, got "
            f"{fastest:.3g}: use substeps of at least {int(fastest * substeps) + 1}"
        )
