"""Calls of user functions and modules that protect their inputs from in-place operations."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy

from neurenix_ms._core.hooks import is_dense
from neurenix_ms._core.tracing import sizes_are_open

Result = TypeVar("Result")


def call_intact(function: Callable[..., Result], *inputs: Any, **named: Any) -> Result:
    """Call a function or module and leave its inputs unchanged, even if it works in place.

    Use it wherever a network of the user is called with a tensor that is used again: a first layer
    such as `nn.ReLU(inplace=True)` would change the input of the next call. A function that writes to
    no input costs no memory.

    Args:
        function: Any callable.
        inputs: Its arguments; tensors, also those in lists, tuples and dicts, are protected.
        named: Its keyword arguments, protected likewise.

    Examples:
        >>> from torch import nn
        >>> x = torch.tensor([-1.0, 2.0])
        >>> call_intact(nn.ReLU(inplace=True), x), x
        (tensor([0., 2.]), tensor([-1.,  2.]))
    """
    return function(*map(protected, inputs), **protected(named))


def protected(value: Any) -> Any:
    """Return a tensor of equal values that may be written to, or a container of such tensors.

    It shares memory with the original tensor. The memory is copied when one of the two is written to.
    """
    if isinstance(value, (Tensor, Proxy)):
        return _clone(value)
    if type(value) in (list, tuple):
        return type(value)(map(protected, value))
    if type(value) is dict:
        return {key: protected(item) for key, item in value.items()}
    return value


def _clone(x: Any) -> Any:
    # a plain copy while a call is recorded; compilers remove it where nothing is written
    if isinstance(x, Proxy) or sizes_are_open() or not _can_share(x):
        return x.clone()
    try:
        return torch._lazy_clone(x)
    except RuntimeError:  # torch does not own the memory: NumPy arrays, files, shared memory
        return x.clone()


def _can_share(x: Tensor) -> bool:
    if not is_dense(x) or x.layout is not torch.strided:
        return False
    # a lazy clone loses the conjugate bit, does not support quantized or nested tensors, and is slow
    # in function transforms
    lazily = x.is_conj() or x.is_neg() or x.is_quantized or x.is_nested
    return not (lazily or torch._C._functorch.is_functorch_wrapped_tensor(x))
