"""Layer classes, functions and checks by number of spatial axes (1, 2 or 3)."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.checks import check_integer, check_tensor, shown
from neurenix_ms._core.convolution import Conv3d, conv3d
from neurenix_ms._core.tracing import is_jit_tracing, one_call, one_module

SpatialDims = Literal[1, 2, 3]


class MaxPool1d(nn.MaxPool1d):
    """Max pooling along one axis whose size stays dynamic while the module is compiled or exported.

    The kernel that torch chooses there fixes the size to that of the example input. The kernel that
    also returns the indices of the maxima, which training uses anyway, does not.

    Shape:
        `(B, C, L)` -> `(B, C, L / stride)`
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        return F.max_pool1d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, True
        )[0]


def avg_pool3d(x: Tensor, *window: Any) -> Tensor:
    """Return `F.avg_pool3d`, computed in float32 for half precision on a CPU, which has no kernel."""
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return F.avg_pool3d(x.float(), *window).to(x.dtype)
    return F.avg_pool3d(x, *window)


class AvgPool3d(nn.AvgPool3d):
    """Average pooling of volumes, also in half precision on a CPU.

    Shape:
        `(B, C, *S)` -> `(B, C, *S / stride)`
    """

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        return avg_pool3d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: Conv3d}
TRANSPOSED_CONVOLUTIONS: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
BATCH_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOLS: dict[str, dict[int, Any]] = {
    "avg": {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: AvgPool3d},
    "max": {1: MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d},
}
ADAPTIVE_POOLS: dict[str, dict[int, Any]] = {
    "avg": {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d},
    "max": {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d},
}
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: conv3d}
LINEAR_MODES: dict[int, str] = {1: "linear", 2: "bilinear", 3: "trilinear"}

MOST_LEVELS = dict.fromkeys(("num_levels", "num_scales"), 62)
Value = TypeVar("Value")


def choose(table: Mapping[Any, Value], key: Hashable, name: str) -> Value:
    """Return `table[key]`, or raise with the valid values of the argument `name`."""
    try:
        known = key in table
    except TypeError:  # `key` is not hashable, such as a list
        known = False
    if not known:
        raise ValueError(f"{name} must be one of {list(table)}, got {shown(key)}")
    return table[key]


@one_call
def check_rank(x: Tensor, spatial_dims: int) -> None:
    """Raise unless `x` is a batch with `spatial_dims` spatial axes."""
    check_tensor("the input", x)
    if x.ndim != spatial_dims + 2:
        raise ValueError(
            f"expected (B, C) and {spatial_dims} spatial axes, got shape {tuple(x.shape)}"
        )


@one_call
def check_channels(x: Tensor, channels: int, what: str | None = None) -> None:
    """Raise unless `x` has `channels` channels."""
    if not is_jit_tracing() and x.shape[1] != channels:
        if what is None:  # a message by itself, which the search of the site finds by its words
            raise ValueError(f"the input must have {channels} channels, got shape {tuple(x.shape)}")
        raise ValueError(f"{what} must have {channels} channels, got shape {tuple(x.shape)}")


def check_positive(**counts: int) -> None:
    """Raise unless every count is at least 1, and a number of levels is at most 62.

    A spatial size is below `2**63`, so it cannot be halved more often.
    """
    for name, count in counts.items():
        check_integer(name, count, 1, MOST_LEVELS.get(name))
