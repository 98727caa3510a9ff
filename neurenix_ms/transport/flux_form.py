"""Advection in flux form: a finite-volume scheme of fifth order with a limit on outflow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurenix_ms._core.tracing import sizes_are_open
from neurenix_ms.transport.fluxes import inflow, through_open_faces, with_limited_outflow
from neurenix_ms.transport.grid import Boundary, extended, moving

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
    begin = through_open_faces(_at_faces(start, boundaries), boundaries, mask) * h
    change = through_open_faces(_at_faces(end, boundaries), boundaries, mask) * h - begin
    _check_courant(begin, begin + change, substeps)

    def euler(mass: Tensor, time: float) -> Tensor:
        fluxes = _upwind_fluxes(mass, begin + time * change, boundaries)
        return mass + inflow(with_limited_outflow(fluxes, mass))

    for step in range(substeps):
        time = step * h
        first = euler(mass, time)
        second = 3 / 4 * mass + 1 / 4 * euler(first, time + h)
        mass = mass / 3 + 2 / 3 * euler(second, time + h / 2)
    return mass


def _at_faces(velocity: Tensor, boundaries: Sequence[Boundary]) -> Tensor:
    """Return the normal velocity at the upper face of every cell, of fourth order."""
    faces = []
    for axis, boundary in enumerate(boundaries):
        v, dim = velocity[:, axis : axis + 1], 2 + axis
        a, b, c, d = moving(extended(v, dim, boundary, 2, odd=True), dim, v.shape[dim])[1:]
        faces.append((9 * (b + c) - (a + d)) / 16)
    return torch.cat(faces, dim=1)


def _upwind_fluxes(mass: Tensor, velocity: Tensor, boundaries: Sequence[Boundary]) -> Tensor:
    fluxes = []
    for axis, boundary in enumerate(boundaries):
        v, dim = velocity[:, axis : axis + 1], 2 + axis
        cells = moving(extended(mass, dim, boundary, RIM), dim, mass.shape[dim])[1:]  # -2 to 3
        below = sum(w * cell for w, cell in zip(UPWIND, cells[:5], strict=True))
        above = sum(w * cell for w, cell in zip(UPWIND, cells[:0:-1], strict=True))
        fluxes.append(v * torch.where(v > 0, below, above))
    return torch.cat(fluxes, dim=1)


def _check_courant(begin: Tensor, end: Tensor, substeps: int) -> None:
    """Raise if a flow crosses more than a cell in a substep, where its speed is known."""
    if sizes_are_open() or begin.is_meta or begin.numel() == 0:
        return
    fastest = max(float(v.detach().abs().sum(1).max()) for v in (begin, end))
    if fastest > 1:
        raise ValueError(
            f"the flow must cross at most 1 cell in a substep, the sum over the axes, got "
            f"{fastest:.3g}: use substeps of at least {int(fastest * substeps) + 1}"
        )
