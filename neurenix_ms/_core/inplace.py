"""Call functions and modules of others so that writing over their inputs changes nothing outside."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy

from neurenix_ms._core.hooks import is_dense
from neurenix_ms._core.tracing import sizes_are_open

Result = TypeVar("Result")


def call_intact(function: Callable[..., Result], *inputs: Any) -> Result:
    """Call a function or module, and keep its inputs as they are even if it works in place.

    Use it wherever a network of somebody else is called with a tensor that is used again: a first
    layer such as `nn.ReLU(inplace=True)` would change what the next call, or the caller, sees. A
    function that writes to no input costs no memory.

    Args:
        function: Any callable.
        inputs: Its arguments; tensors, also those in lists, tuples and dicts, are protected.

    Examples:
        >>> x = torch.tensor([-1.0, 2.0])
        >>> call_intact(nn.ReLU(inplace=True), x), x
        (tensor([0., 2.]), tensor([-1.,  2.]))
    """
    return function(*map(protected, inputs))


def protected(value: Any) -> Any:
    """A tensor of equal values that may be written to, or the same container of such tensors.

    It shares memory with the tensor until one of both is written to; only then is it copied.
    """
    if isinstance(value, (Tensor, Proxy)):
        return _clone(value)
    if type(value) in (list, tuple):
        return type(value)(map(protected, value))
    if type(value) is dict:
        return {key: protected(item) for key, item in value.items()}
    return value


def _clone(x: Any) -> Any:
    # while it is recorded, a plain copy, which compilers drop where nothing is written
    if isinstance(x, Proxy) or sizes_are_open() or not _can_share(x):
        return x.clone()
    try:
        return torch._lazy_clone(x)
    except RuntimeError:  # memory that torch does not own: of NumPy, of a file, shared by processes
        return x.clone()


def _can_share(x: Tensor) -> bool:
    if not is_dense(x) or x.layout is not torch.strided:
        return False
    # the shared form forgets a conjugation, cannot be quantized or nested, and is slow in transforms
    lazily = x.is_conj() or x.is_neg() or x.is_quantized or x.is_nested
    return not (lazily or torch._C._functorch.is_functorch_wrapped_tensor(x))
