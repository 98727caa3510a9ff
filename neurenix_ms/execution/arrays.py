"""Tensors, and arrays that are sliced like them (numpy, memory-mapped, zarr), read and written."""

from typing import Any, Protocol

import torch
from torch import Tensor


class ArrayLike(Protocol):
    """Anything with a shape that is sliced like an array."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, index: Any) -> Any: ...

    def __setitem__(self, index: Any, value: Any) -> None: ...


def read(x: Any, index: tuple[slice, ...], like: Tensor) -> Tensor:
    """A piece of `x`, on the device of `like`; a piece of an array also in its dtype."""
    piece = x[index]
    if isinstance(piece, Tensor):
        return piece.to(like.device)
    return torch.tensor(piece, device=like.device, dtype=like.dtype)


def write(out: Any, index: tuple[slice, ...], piece: Tensor) -> None:
    """Put `piece` into `out`."""
    if isinstance(out, Tensor):
        out[index] = piece.to(out.device)
        return
    piece = piece.detach().cpu()
    out[index] = (piece.float() if piece.dtype == torch.bfloat16 else piece).numpy()


def expect_shape(array: Any, shape: tuple[int, ...], name: str) -> None:
    """Refuse an array of another shape."""
    if not hasattr(array, "shape") or tuple(array.shape) != shape:
        came = tuple(array.shape) if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"{name} must have shape {shape}, got {came}")
