"""Convolutions and linear layers that only propagate NaN, at the cost of one channel.

A value of such a layer is NaN if any of the values it reads is, whatever the weights, because NaN times
zero is NaN. If only the positions of NaN are needed, one convolution of the mask of NaN by a kernel of
ones replaces those of all channels. All other values are random, because later layers may divide by
them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neurenix_ms._core.convolution import conv3d

CONVOLUTIONS = {F.conv1d: F.conv1d, F.conv2d: F.conv2d, F.conv3d: F.conv3d, conv3d: F.conv3d}
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
NAMES = "input weight bias stride padding dilation groups"
TRANSPOSED_NAMES = "input weight bias stride padding output_padding groups dilation"


def nan_pattern(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the replacement for a function of torch if only the positions of NaN are needed."""
    if function in CONVOLUTIONS:
        return lambda *args, **kwargs: _convolved(CONVOLUTIONS[function], NAMES, args, kwargs)
    if function in TRANSPOSED:
        return lambda *args, **kwargs: _convolved(function, TRANSPOSED_NAMES, args, kwargs)
    return _linear if function is F.linear else function


def _convolved(
    function: Callable[..., Tensor],
    names: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    given = dict(zip(names.split(), args, strict=False)) | kwargs
    given.pop("bias", None)
    x, weight = given.pop("input"), given.pop("weight")
    groups = given.get("groups", 1)
    batch = x if x.ndim == weight.ndim else x[None]
    transposed = names == TRANSPOSED_NAMES
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    spots = batch.isnan().reshape(len(batch), groups, -1, *batch.shape[2:]).any(2).float()
    kernel = spots.new_ones(groups, 1, *weight.shape[2:])
    reached = function(spots, kernel, **given) > 0.5
    y = _random((len(batch), channels, *reached.shape[2:]), x)
    pieces = y.reshape(len(batch), groups, channels // groups, *reached.shape[2:])
    pieces.masked_fill_(reached.unsqueeze(2), torch.nan)
    return y if x.ndim == weight.ndim else y[0]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = _random((*input.shape[:-1], len(weight)), input)
    return y.masked_fill_(input.isnan().any(-1, keepdim=True), torch.nan)


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    real = torch.rand(shape, generator=generator, device=like.device, dtype=torch.float32)
    return (2 * real - 1).to(like.dtype)
