"""Neighboring cells of a grid with periodic or closed boundaries."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from neurenix_ms._core.dims import choose

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


def extended_vector(
    v: Tensor, first_dim: int, boundaries: Sequence[Boundary], rim: int
) -> list[Tensor]:
    """Return the components of a vector field, each extended on all axes; odd across its own walls.

    Shape:
        `(B, D, *S)` -> D times `(B, 1, *S + 2 * rim)`
    """
    components = []
    for i in range(v.shape[1]):
        x = v[:, i : i + 1]
        for axis, boundary in enumerate(boundaries):
            x = extended(x, first_dim + axis, boundary, rim, odd=axis == i)
        components.append(x)
    return components


def moving(x: Tensor, dim: int, size: int) -> list[Tensor]:
    """Return all views of `size` consecutive cells of an extended dimension, in order."""
    return [x.narrow(dim, start, size) for start in range(x.shape[dim] - size + 1)]
