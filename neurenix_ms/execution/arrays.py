"""Tensors, and arrays that are sliced like them (numpy, memory-mapped, zarr), read and written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def read(x: Any, index: tuple[slice, ...], like: Tensor, *, own: bool = False) -> Tensor:
    """A piece of `x`, on the device of `like`; of an array also in its dtype; `own` makes a copy."""
    piece = x[index]
    if isinstance(piece, Tensor):
        return piece.to(like.device, copy=own)
    return torch.tensor(piece, device=like.device, dtype=like.dtype)


def write(out: Any, index: tuple[slice, ...], piece: Tensor) -> None:
    """Put `piece` into `out`."""
    if isinstance(out, Tensor):
        out[index] = piece.to(out.device)
        return
    piece = piece.detach().cpu()
    out[index] = (piece.float() if piece.dtype == torch.bfloat16 else piece).numpy()


def expect_arrays(out: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """The arrays of `out`, if they are of these shapes."""
    arrays = tree_leaves(out)
    if len(arrays) != len(shapes):
        raise ValueError(f"out must hold {len(shapes)} arrays, got {len(arrays)}")
    for array, shape in zip(arrays, shapes, strict=True):
        came = tuple(array.shape) if hasattr(array, "shape") else type(array).__name__
        if came != shape:
            raise ValueError(f"out must have shape {shape}, got {came}")
    return arrays
