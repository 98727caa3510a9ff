"""Find where along an axis tensors hold NaN, or differ."""

import math

import torch
from torch import Tensor

from neurenix_ms.execution.plan.lengths import Line

TOLERANCES = {torch.float64: 1e-11, torch.float32: 3e-5}
TOLERANCES |= {torch.complex128: 1e-11, torch.complex64: 3e-5}
IN_HALF_PRECISION = 0.05


def can_hold_nan(t: Tensor) -> bool:
    """Whether the tensor is of floating point or complex numbers."""
    return t.is_floating_point() or t.is_complex()


def spoil(x: Tensor, dim: int, first: int, last: int) -> None:
    """Write NaN into these cells."""
    x.narrow(dim, first, max(0, last - first)).fill_(math.nan)


def nans(t: Tensor, line: Line | None) -> Tensor:
    """Where along the axis there is a NaN; for what does not follow the map, whether."""
    if not can_hold_nan(t):
        return torch.zeros(1 if line is None else t.shape[line.dim], dtype=torch.bool)
    spots = t.isnan()
    return spots.any().reshape(1) if line is None else along(spots, line.dim)


def differs(wanted: Tensor, got: Tensor | None, dim: int, same_length: bool = False) -> Tensor:
    """Where along `dim` the two differ; where one is too short, they do."""
    length = wanted.shape[dim]
    none, everywhere = torch.zeros(length, dtype=torch.bool), torch.ones(length, dtype=torch.bool)
    if got is None or not can_hold_nan(wanted):
        return none
    others = [
        n == m for d, (n, m) in enumerate(zip(wanted.shape, got.shape, strict=True)) if d != dim
    ]
    if not all(others) or (same_length and got.shape[dim] != length):
        return everywhere
    shared = min(length, got.shape[dim])
    a, b = wanted.narrow(dim, 0, shared), got.narrow(dim, 0, shared)
    most = a.abs().max() if a.numel() else 0
    apart = (a - b).abs() > TOLERANCES.get(wanted.dtype, IN_HALF_PRECISION) * most
    everywhere[:shared] = along(apart, dim)
    return everywhere


def along(spots: Tensor, dim: int) -> Tensor:
    """Where along `dim` there is any spot."""
    return spots.movedim(dim, 0).reshape(spots.shape[dim], -1).any(1).cpu()


def first_of(spots: Tensor) -> int:
    """The first place; the length if there is none."""
    places = spots.nonzero()
    return int(places[0]) if len(places) else len(spots)


def last_of(spots: Tensor) -> int:
    """The last place; -1 if there is none."""
    places = spots.nonzero()
    return int(places[-1]) if len(places) else -1
