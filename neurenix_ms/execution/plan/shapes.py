"""Functions of torch that only return a tensor of the right shape, at the cost of one call.

Torch decomposes normalizations and linear interpolation of tensors without memory into many calls, and
chooses an implementation of every convolution. That took most of the time of a run that asks for shapes
only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from neurenix_ms._core.convolution import conv3d
from neurenix_ms.execution.plan.statistics import NORMS, normalization

CONVOLUTIONS: set[Callable[..., Tensor]] = {F.conv1d, F.conv2d, F.conv3d, conv3d}
CONVOLUTIONS |= {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def of_its_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the replacement for a function of torch if only the shapes of results are needed."""
    if function in CONVOLUTIONS:
        ours = function is conv3d  # our convolution makes more calls
        return partial(_convolved, F.conv3d if ours else function)
    if function in NORMS:
        return partial(_normalized, function)
    if function in (F.layer_norm, torch.layer_norm):
        return _like_the_first
    return _resized if function is F.interpolate else function


def _convolved(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    x: Tensor = args[0] if args else kwargs["input"]
    if torch.is_autocast_enabled(x.device.type):  # the result has another dtype
        return function(*args, **kwargs)
    try:
        with unset_fake_temporarily():
            y = function(*map(_on_meta, args), **{name: _on_meta(v) for name, v in kwargs.items()})
    except RuntimeError:
        return function(*args, **kwargs)  # raises torch's error with the numbers of channels
    return x.new_empty(y.shape)


def _on_meta(value: Any) -> Any:
    """Return a tensor on the device "meta" for a tensor, and other values as they are."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _normalized(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    norm = normalization(function, args, kwargs)
    return _like_the_first(*args, **kwargs) if norm is None else norm.of_its_shape()


def _like_the_first(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(input)


def _resized(
    input: Tensor, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any
) -> Tensor:
    return F.interpolate(input, size, scale_factor)  # nearest: the size is the same in every mode
