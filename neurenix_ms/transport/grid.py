"""Neighboring cells of a grid with periodic or closed boundaries."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from neurenix_ms._core.dims import choose
from neurenix_ms._core.tracing import sizes_are_open

Boundary = Literal["periodic", "wall"]
BOUNDARIES = dict.fromkeys(("periodic", "wall"))


def boundaries_of(boundary: Boundary | Sequence[Boundary], spatial_dims: int) -> list[Boundary]:
    """Return the boundary of every axis."""
    each = [boundary] * spatial_dims if isinstance(boundary, str) else list(boundary)
    if len(each) != spatial_dims:
        raise ValueError(f"boundary must be one name or {spatial_dims}, one per axis, got {each}")
    for name in each:
        choose(BOUNDARIES, name, "boundary")
    return each


def extended(x: Tensor, dim: int, boundary: Boundary, rim: int, odd: bool = False) -> Tensor:
    """Extend a dimension by some cells on both sides: periodically, or mirrored at the walls.

    Args:
        x: Any tensor.
        dim: The dimension.
        boundary: Its boundary.
        rim: Number of cells on each side; it may be larger than the size.
        odd: Whether mirrored values change their sign, as a velocity towards the wall does.
    """
    n = x.shape[dim]
    if not sizes_are_open() and 0 < rim <= n:  # one copy, without a table of cells
        first, last = x.narrow(dim, 0, rim), x.narrow(dim, n - rim, rim)
        if boundary == "periodic":
            return torch.cat([last, x, first], dim)
        below, above = first.flip(dim), last.flip(dim)
        return torch.cat([-below, x, -above] if odd else [below, x, above], dim)
    cells = torch.arange(-rim, n + rim, device=x.device)
    if boundary == "periodic":
        return x.index_select(dim, cells % n)
    turn = cells % (2 * n)
    mirrored = turn >= n
    y = x.index_select(dim, torch.where(mirrored, 2 * n - 1 - turn, turn))
    if not odd:
        return y
    sign = torch.where(mirrored, -1, 1).to(x.dtype)
    return y * sign.reshape(-1, *(1,) * (x.ndim - 1 - dim % x.ndim))


def extended_field(
    x: Tensor, boundaries: Sequence[Boundary], rim: int, odd_axis: int | None = None
) -> Tensor:
    """Extend all axes of a field; `odd_axis` is the one across whose walls it changes its sign.

    Shape:
        `(B, C, *S)` -> `(B, C, *S + 2 * rim)`
    """
    for axis, boundary in enumerate(boundaries):
        x = extended(x, 2 + axis, boundary, rim, odd=axis == odd_axis)
    return x


def extended_vector(v: Tensor, boundaries: Sequence[Boundary], rim: int) -> Tensor:
    """Extend all axes of a vector field, whose components are odd across their own walls.

    Shape:
        `(B, D, *S)` -> `(B, D, *S + 2 * rim)`
    """
    components = v.split(1, dim=1)
    return torch.cat([extended_field(x, boundaries, rim, i) for i, x in enumerate(components)], 1)


def moving(x: Tensor, dim: int, size: int) -> list[Tensor]:
    """Return all views of `size` consecutive cells of an extended dimension, in order."""
    return [x.narrow(dim, start, size) for start in range(x.shape[dim] - size + 1)]


def weighted_sum(cells: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of tensors with weights, in one new tensor."""
    total = cells[0] * weights[0]
    for cell, weight in zip(cells[1:], weights[1:], strict=True):
        total = total.add_(cell, alpha=weight)
    return total
