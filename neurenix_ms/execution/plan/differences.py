"""Find where along an axis tensors hold NaN, or differ."""

import math

import torch
from torch import Tensor

from neurenix_ms.execution.plan.lengths import Line

TOLERANCES = {torch.float64: 1e-11, torch.float32: 3e-5}
TOLERANCES |= {torch.complex128: 1e-11, torch.complex64: 3e-5}
IN_HALF_PRECISION = 0.05


def can_hold_nan(t: Tensor) -> bool:
    """Return whether the tensor holds floating point or complex numbers."""
    return t.is_floating_point() or t.is_complex()


def fill_with_nan(x: Tensor, dim: int, first: int, last: int) -> None:
    """Write NaN into the positions from `first` to `last` along `dim`, in place."""
    x.narrow(dim, first, max(0, last - first)).fill_(math.nan)


def nans(t: Tensor, line: Line | None) -> Tensor:
    """Return which positions along the axis hold NaN; without a line, whether any value is NaN."""
    if not can_hold_nan(t):
        return torch.zeros(1 if line is None else t.shape[line.dim], dtype=torch.bool)
    spots = t.isnan()
    return along(spots.reshape(1, -1), 0) if line is None else along(spots, line.dim)


def differs(wanted: Tensor, got: Tensor | None, dim: int, same_length: bool = False) -> Tensor:
    """Return which positions along `dim` differ; positions that one tensor lacks count as different."""
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
    everywhere[:shared] = _apart(a, b, dim, TOLERANCES.get(wanted.dtype, IN_HALF_PRECISION))
    return everywhere


def _apart(a: Tensor, b: Tensor, dim: int, tolerance: float) -> Tensor:
    """Return which positions along `dim` differ by more than a fraction of the largest value of `a`.

    Values without a difference, such as NaN, count as equal.
    """
    if not a.numel():
        return torch.zeros(a.shape[dim], dtype=torch.bool)
    apart = (a - b).abs()
    if a.is_floating_point():
        least, most = torch.aminmax(a)
        largest, spread = torch.maximum(-least, most), apart
        for other in reversed(range(a.ndim)):  # several times faster than all axes at once
            spread = spread if other == dim else spread.amax(other, keepdim=True)
        if (spread + largest).isfinite().all():
            return (spread > tolerance * largest).reshape(-1).cpu()
    return along(apart > tolerance * a.abs().max(), dim)


def along(spots: Tensor, dim: int) -> Tensor:
    """Return which positions along `dim` have any spot."""
    if not spots.numel():
        return torch.zeros(spots.shape[dim], dtype=torch.bool)
    rows = spots.movedim(dim, 0).reshape(spots.shape[dim], -1)
    return rows.view(torch.uint8).amax(1).bool().cpu()  # up to forty times faster than `any`


def first_of(spots: Tensor) -> int:
    """Return the first marked position; the length if there is none."""
    places = spots.nonzero()
    return int(places[0]) if len(places) else len(spots)


def last_of(spots: Tensor) -> int:
    """Return the last marked position; -1 if there is none."""
    places = spots.nonzero()
    return int(places[-1]) if len(places) else -1
