"""Anti-aliased downsampling by blurring and subsampling."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.constants import kept_constants
from neurenix_ms._core.dims import CONVOLVE, SpatialDims, check_rank, choose
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_module

LARGEST_KERNEL = 1023  # the largest whose binomial coefficients fit into a floating-point number
FEW_WEIGHTS = 3  # per axis of a volume
BlurPadding = Literal["reflect", "replicate"]


def binomial_weights(kernel_size: int) -> list[float]:
    """Return a row of Pascal's triangle, divided by its sum."""
    check_integer("kernel_size", kernel_size, 1, LARGEST_KERNEL)
    row = [math.comb(kernel_size - 1, k) for k in range(kernel_size)]
    return [weight / sum(row) for weight in row]


def outer(weight: float, table: Any) -> Any:
    """Return nested lists with every entry multiplied by a weight."""
    return [outer(weight, row) for row in table] if isinstance(table, list) else weight * table


class Blur(nn.Module):
    """Smooth with the same weights along every axis, and keep every `stride`-th pixel.

    Of unequal strides, an axis of stride 1 is left as it is.

    Shape:
        `(B, C, *S)` -> `(B, C, *ceil(S / stride))`
    """

    def __init__(
        self,
        weights: Sequence[float],
        stride: int | Sequence[int],
        spatial_dims: SpatialDims,
        padding_mode: BlurPadding = "reflect",
    ) -> None:
        super().__init__()
        self.weights = list(weights)
        self.table: Any = self.weights
        for _ in range(1, spatial_dims):
            self.table = [outer(weight, self.table) for weight in self.weights]
        self.strides = (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)
        self.is_even = len(set(self.strides)) == 1
        self.spatial_dims = spatial_dims
        self.padding_mode = padding_mode
        self.before = (len(self.weights) - 1) // 2
        self.after = len(self.weights) // 2

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        few = self.spatial_dims < 3 or len(self.weights) <= FEW_WEIGHTS
        if few and self.is_even and min(spatial(x)) > self.after:
            return self._convolved(x)
        for axis, stride in enumerate(self.strides, start=2):
            if self.is_even or stride > 1:
                x = self._blurred(x, axis, stride)
        return x

    def _convolved(self, x: Tensor) -> Tensor:
        """Blur all axes in one depthwise convolution, which is faster for few weights."""
        dims, channels = self.spatial_dims, x.shape[1]
        border = [self.before, self.after] * dims
        if dims == 1:  # torch pads rows of images in a third of the time
            padded = F.pad(x.unsqueeze(2), [*border, 0, 0], self.padding_mode).squeeze(2)
        else:
            padded = F.pad(x, border, self.padding_mode)
        return CONVOLVE[dims](padded, self._kernels(x), None, self.strides, 0, 1, channels)

    def _kernels(self, x: Tensor) -> Tensor:
        """Return the kernel once per channel, as a depthwise convolution needs it."""
        channels = x.shape[1]

        def make() -> tuple[Tensor]:
            kernel = x.new_tensor(self.table)
            return (kernel.expand(channels, 1, *[-1] * self.spatial_dims).contiguous(),)

        key = "blur", tuple(self.weights), self.spatial_dims, channels, x.dtype, x.device
        return kept_constants(self, "kernel", key, make)[0]

    def _blurred(self, x: Tensor, axis: int, stride: int) -> Tensor:
        kept = (x.shape[axis] + stride - 1) // stride
        more = (len(self.weights) - 1) // stride
        # samples grouped by their phase, so that every shift of the kernel is a contiguous slice
        steps = stride * torch.arange(kept + more, device=x.device) - self.before
        phases = [
            self._continued(x, axis, steps + k) for k in range(min(stride, len(self.weights)))
        ]
        total = phases[0].narrow(axis, 0, kept) * self.weights[0]
        for shift, weight in enumerate(self.weights[1:], start=1):
            part = phases[shift % stride].narrow(axis, shift // stride, kept)
            total.add_(part, alpha=weight)
        return total

    def _continued(self, x: Tensor, axis: int, index: Tensor) -> Tensor:
        """Return samples of an axis with padded borders, repeated if the axis is too short to mirror."""
        n = x.shape[axis]
        if self.padding_mode == "reflect" and n > self.after:
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        return x.index_select(axis, index.clamp(0, n - 1))


class BlurPool(Configured, nn.Module):
    """Blur with a binomial kernel and keep every second pixel.

    Use it in place of the stride of a convolution or max pooling: give that layer stride 1 and let a
    `BlurPool` follow. The aliasing of strided layers makes a network sensitive to shifts of its input by
    a pixel. It has no parameters.

    Args:
        kernel_size: Number of weights per axis: 1 does not blur, 2 averages pairs, 3 is [1, 2, 1] / 4,
            5 is [1, 4, 6, 4, 1] / 16.
        stride: Stride of the subsampling.
        padding_mode: "reflect" mirrors the pixels at the border, "replicate" repeats the last one. An
            axis that is too short to be mirrored is always padded by "replicate".
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> `(B, C, *ceil(S / stride))`

    Raises:
        ValueError: If a number is below 1, `padding_mode` is unknown, or the input has the wrong rank.

    Source: Zhang 2019, "Making convolutional networks shift-invariant again", section 3.2.

    Examples:
        >>> import torch
        >>> from neurenix_ms import BlurPool
        >>> pool = torch.nn.Sequential(torch.nn.MaxPool2d(2, stride=1), BlurPool())
        >>> pool(torch.zeros(1, 8, 13, 9)).shape
        torch.Size([1, 8, 6, 4])
    """

    @checked
    def __init__(
        self,
        kernel_size: int = 3,
        stride: int = 2,
        *,
        padding_mode: BlurPadding = "reflect",
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        check_integer("stride", stride, 1)
        choose(CONVOLVE, spatial_dims, "spatial_dims")
        weights = binomial_weights(kernel_size)
        self.blur = Blur(weights, stride, spatial_dims, padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        return self.blur(x)
