"""Read and write tensors, and arrays that can be sliced like them (NumPy, memory-mapped, dask, zarr).

One rule holds for inputs, targets and results, both tensors and arrays: real numbers and booleans are
converted to the required dtype, whatever their byte order and strides. A conversion that would lose
information, such as complex numbers for a real model or the mask of a masked array, raises an error.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from neurenix_ms._core.checks import shown

REAL = "biuf"  # kinds of NumPy: booleans, signed and unsigned integers, floats
FEWER_BITS = {torch.bfloat16: torch.float32}  # NumPy has no bfloat16


def read(
    x: Any, index: tuple[slice, ...], like: Tensor, *, own: bool = False, name: str = "x"
) -> Tensor:
    """Return a piece of `x` in the dtype and on the device of `like`; `own` makes a copy."""
    return to_tensor(x[index], like.dtype, like.device, own=own, name=name)


def read_target(x: Any, index: tuple[slice, ...], like: Tensor, name: str = "target") -> Tensor:
    """Return a copy of a piece of a target, with integers as int64, booleans as they are, and other
    numbers as in `read`."""
    piece = x[index]
    kind = kind_of(name, piece)
    dtype = {"b": torch.bool, "i": torch.int64, "u": torch.int64}.get(kind, like.dtype)
    return to_tensor(piece, dtype, like.device, own=True, name=name)


def to_tensor(
    x: Any, dtype: torch.dtype, device: torch.device | str, *, own: bool = False, name: str = "x"
) -> Tensor:
    """Return a tensor or array as a tensor of this dtype; an array is always copied.

    Args:
        x: A tensor, or anything that NumPy converts to an array.
        dtype: Of the result.
        device: Of the result.
        own: Copy a tensor even if it has that dtype already.
        name: Of the argument, for messages.

    Raises:
        ValueError: If it does not hold real numbers or booleans, holds complex numbers and `dtype` is
            real, or has masked values.

    Examples:
        >>> to_tensor(np.arange(3, dtype=">i2")[::-1], torch.float32, "cpu")
        tensor([2., 1., 0.])
    """
    if not isinstance(x, Tensor):
        # dask arrays are computed by dask, since NumPy would drop their mask
        x = np.asanyarray(x.compute() if hasattr(x, "__dask_graph__") else x)
    check_kind(name, x, dtype)
    if isinstance(x, Tensor):
        return x.to(device, dtype, copy=own)
    plain = torch.empty(0, dtype=FEWER_BITS.get(dtype, dtype)).numpy().dtype
    array = np.array(x, dtype=plain, order="C", subok=False)
    return torch.from_numpy(array).to(device, dtype)


def check_array(name: str, x: Any, dtype: torch.dtype) -> None:
    """Raise unless `x` is a tensor or an array that can be sliced, and converts to `dtype`."""
    if isinstance(x, Tensor):
        check_kind(name, x, dtype)
        return
    if not hasattr(x, "shape") or not hasattr(x, "__getitem__"):
        raise ValueError(
            f"{name} must be a tensor or an array that can be sliced, got {type(x).__name__}; "
            "convert it by torch.as_tensor or numpy.asarray"
        )
    if hasattr(x, "dtype"):  # without a dtype, every piece is checked when it is read
        check_kind(name, x, dtype)


def check_kind(name: str, x: Any, dtype: torch.dtype) -> None:
    """Raise if `x` cannot be converted to `dtype` without loss of information."""
    kind = kind_of(name, x)
    if kind == "c" and not dtype.is_complex:
        raise ValueError(
            f"{name} must be real, since {dtype} cannot hold complex numbers, got type {x.dtype}; "
            "pass real and imaginary part as channels"
        )
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        count = int(np.ma.getmaskarray(x).sum())
        raise ValueError(
            f"{name} must have a value everywhere, got an array with {count} masked "
            "values; fill them first (x.filled(0)), and pass the mask as a channel if it is needed"
        )


def dtype_of(x: Any) -> torch.dtype | None:
    """Return the torch dtype of `x` if it is floating point or complex, else None."""
    if isinstance(x, Tensor):
        return x.dtype if x.dtype.is_floating_point or x.dtype.is_complex else None
    if not hasattr(x, "dtype") or kind_of("x", x) not in "fc":
        return None
    try:
        return torch.from_numpy(np.empty(0, np.dtype(x.dtype).newbyteorder("="))).dtype
    except TypeError:  # torch has no such dtype
        return None


def kind_of(name: str, x: Any) -> str:
    """Return the kind of a tensor's or an array's values as NumPy names it, one of "biufc"."""
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_nested or x.is_quantized:
            form = "quantized" if x.is_quantized else "nested" if x.is_nested else str(x.layout)
            raise ValueError(
                f"{name} must be a dense tensor, got one that is {form}; call to_dense(), "
                "dequantize() or to_padded_tensor() first"
            )
        if x.dtype.is_complex:
            return "c"
        if x.dtype.is_floating_point:
            return "f"
        return "b" if x.dtype == torch.bool else "i"
    try:
        kind = np.dtype(x.dtype).kind
    except (TypeError, AttributeError):  # a dtype of another library; its pieces are NumPy arrays
        return "f"
    if kind not in f"{REAL}c":
        raise ValueError(f"{name} must hold numbers or booleans, got {shown(x)}")
    return kind


def write(out: Any, index: tuple[slice, ...], piece: Tensor) -> None:
    """Write `piece` into `out` at `index`."""
    if isinstance(out, Tensor):
        out[index] = piece.to(out.device)
        return
    piece = piece.detach().cpu().resolve_conj().resolve_neg()
    out[index] = piece.to(FEWER_BITS.get(piece.dtype, piece.dtype)).numpy()


def check_outputs(out: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Return the arrays of `out`; raise unless they have these shapes and can be written to."""
    arrays = tree_leaves(out)
    if len(arrays) != len(shapes):
        raise ValueError(f"out must hold {len(shapes)} arrays, got {len(arrays)}")
    for array, shape in zip(arrays, shapes, strict=True):
        came = tuple(array.shape) if hasattr(array, "shape") else type(array).__name__
        if came != shape:
            raise ValueError(f"out must have shape {shape}, got {came}")
        fixed = isinstance(array, np.ndarray) and not array.flags.writeable
        if fixed or getattr(array, "read_only", False) is True:
            raise ValueError(f"out must be writable, got {shown(array)}, which is read-only")
        if isinstance(array, np.ma.MaskedArray):
            raise ValueError(
                "out must be an array without a mask, got a masked array; pass out.data"
            )
        spread = isinstance(array, Tensor) and array.layout is torch.strided
        if spread and any(s == 0 < n - 1 for s, n in zip(array.stride(), array.shape, strict=True)):
            raise ValueError(
                f"out must have memory for every value, got {shown(array)} that is expanded"
            )
    return arrays


def check_writable(out: Any, dtype: torch.dtype, largest: int | None = None) -> None:
    """Raise unless `out` can hold results of this dtype, and `largest` if it is given."""
    kind = kind_of("out", out)
    if dtype.is_complex and kind != "c":
        raise ValueError(f"out must be complex, as the result is, got type {out.dtype}")
    if dtype.is_floating_point and kind not in "fc":
        raise ValueError(
            f"out must have a floating point type, as the result does, got type {out.dtype}; "
            "reduce='argmax' returns integers"
        )
    if largest is not None and largest > _most(out, kind):
        raise ValueError(
            f"out must be able to hold labels up to {largest}, got type {out.dtype}, whose largest "
            f"value is {_most(out, kind)}"
        )


def check_apart(x: Any, out: Sequence[Any]) -> None:
    """Raise if writing a result would overwrite the input that later tiles read."""
    for array in out:
        if _share_memory(x, array):
            raise ValueError(
                "out must not share memory with x, which later tiles read, got "
                f"{shown(array)} that does"
            )


def _most(out: Any, kind: str) -> int:
    if kind == "b":
        return 1
    if isinstance(out, Tensor):
        whole = not out.dtype.is_floating_point and not out.dtype.is_complex
        return torch.iinfo(out.dtype).max if whole else int(2 / torch.finfo(out.dtype).eps)
    dtype = np.dtype(out.dtype)
    return int(np.iinfo(dtype).max) if kind in "iu" else int(2 / np.finfo(dtype).eps)


def _share_memory(x: Any, out: Any) -> bool:
    one, other = _ends(x), _ends(out)
    if one is None or other is None or one[0] != other[0]:
        return False
    return one[1] < other[2] and other[1] < one[2]


def _ends(x: Any) -> tuple[str, int, int] | None:
    """Return the device, and the addresses at which the memory of an array begins and ends."""
    if isinstance(x, Tensor) and x.layout is torch.strided and x.numel():
        reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        return str(x.device), x.data_ptr(), x.data_ptr() + (reach + 1) * x.element_size()
    if isinstance(x, np.ndarray) and x.size:
        steps = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)]
        first = x.__array_interface__["data"][0]
        lowest, highest = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0)
        return "cpu", first + lowest, first + highest + x.itemsize
    return None
