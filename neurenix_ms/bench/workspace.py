"""Workspace that recurrent kernels of a CPU keep from forward to backward.

The shape functions of torch leave it out, and its size follows rules of the kernel library. So the
kernel itself runs, on sequences that are short enough to cost little.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

KERNEL = torch.ops.aten.mkldnn_rnn_layer.default
TRAIN = -1  # index of the argument that requests a workspace
WORKSPACE = 3  # its index among the results
MOST_VALUES = 2**18  # of the input and the gates of a sequence that the kernel runs on
GATES = 4


class KernelWorkspace(TorchDispatchMode):
    """Context in which recurrent layers without memory keep the workspace of those with memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if func is not KERNEL or not (args[TRAIN] and torch.is_grad_enabled()):
            return results
        x, *others = args
        kinds = tuple(a.shape if isinstance(a, Tensor) else _hashable(a) for a in others)
        size = _bytes(tuple(x.shape), x.dtype, kinds)
        return *results[:WORKSPACE], results[WORKSPACE].new_empty(size, dtype=torch.uint8)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _bytes(shape: tuple[int, ...], dtype: torch.dtype, others: tuple[Any, ...]) -> int:
    """Return the workspace of a sequence `(T, B, C)`; that of a long one is extrapolated.

    It grows linearly with the length, up to the size of a page. `others` are the shapes of tensors and
    the values of settings.
    """
    length, *size = shape
    hidden = others[0][0] // GATES
    longest = max(2, MOST_VALUES // (size[0] * (size[1] + GATES * hidden)))
    if length <= longest:
        return _measured((length, *size), dtype, others)
    short, long = (_measured((n, *size), dtype, others) for n in (longest // 2, longest))
    step = (long - short) / (longest - longest // 2)
    return round(long + step * (length - longest))


@functools.lru_cache
def _measured(shape: tuple[int, ...], dtype: torch.dtype, others: tuple[Any, ...]) -> int:
    """Return the bytes that the kernel keeps on a sequence of zeros."""
    with _disable_current_modes(), torch.enable_grad():  # without autograd, it keeps nothing
        args = [torch.zeros(a, dtype=dtype) if isinstance(a, torch.Size) else a for a in others]
        workspace: Tensor = KERNEL(torch.zeros(shape, dtype=dtype), *args)[WORKSPACE]
        return workspace.nbytes
