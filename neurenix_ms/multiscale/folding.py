"""Convolution of a feature map and resized small grids, without the concatenated tensor."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, CONVOLVE, SpatialDims
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_module
from neurenix_ms.checkpointing import recomputed
from neurenix_ms.layers.blocks import modulated
from neurenix_ms.layers.conditioning import FiLM
from neurenix_ms.layers.naming import Act, make_act
from neurenix_ms.layers.resize import Resize

TAPS = 3  # entries of the kernel per axis
WORTH_IT = (
    2**27
)  # saved operations; below this number the many small products are slower, as measured


class FoldedConvolution(nn.Module):
    """Resize grids to a feature map, concatenate and convolve, without the concatenated tensor.

    Resizing and convolution are both linear, and resizing is separable over the axes. Every grid is
    therefore multiplied by its slice of the kernel at its own size, each tap separately. Along each axis
    one matrix then resizes the products and shifts them by the tap. A grid of `n` bins costs `3 n`
    multiplications per pixel of the feature map, instead of `3**axes` for each of its channels. Small
    feature maps are concatenated and convolved directly, unless the call is compiled or exported.

    Args:
        in_channels: Channels of the feature map.
        grid_channels: Channels of every grid.
        bins: Bins per axis of each grid.
        out_channels: Channels of the result.
        resize: Module that resizes a grid to the size of the feature map.
        spatial_dims: Number of spatial axes.
        bias: Whether to add a bias.

    Shape:
        `(B, in_channels, *S)` and a list of `(B, grid_channels, *(n,) * axes)` ->
        `(B, out_channels, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        grid_channels: int,
        bins: Sequence[int],
        out_channels: int,
        resize: Resize,
        spatial_dims: SpatialDims,
        bias: bool,
    ) -> None:
        super().__init__()
        self.widths = [in_channels] + [grid_channels] * len(bins)
        conv = CONVOLUTIONS[spatial_dims](sum(self.widths), out_channels, TAPS, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias
        self.convolve = CONVOLVE[spatial_dims]
        self.bins = list(bins)
        self.resize = resize

    @one_module
    def forward(self, x: Tensor, grids: Sequence[Tensor]) -> Tensor:
        if torch.compiler.is_compiling() or self.saved_by_folding(x) >= WORTH_IT:
            return self.folded(x, grids)
        stacked = torch.cat([x, *(self.resize(grid, spatial(x)) for grid in grids)], dim=1)
        return self.convolve(stacked, self.weight, self.bias, padding=TAPS // 2)

    def saved_by_folding(self, x: Tensor) -> int:
        """Return the number of operations of the kernel on the channels of the grids."""
        per_pixel = 2 * self.weight.numel() * sum(self.widths[1:]) // sum(self.widths)
        return per_pixel * x.numel() // x.shape[1]

    def folded(self, x: Tensor, grids: Sequence[Tensor]) -> Tensor:
        """Return the sum of the convolutions of the feature map and of each grid."""
        own, *kernels = self.weight.split(self.widths, dim=1)
        y = self.convolve(x, own, self.bias, padding=TAPS // 2).contiguous()
        lines = y.view(-1, y.shape[-1])
        axes = [self.spreading(y, size) for size in spatial(y)]
        for grid, kernel, *matrices in zip(grids, kernels, *axes, strict=True):
            part = by_taps(grid, kernel)
            for matrix in matrices[:-1]:  # the first spatial axis is resized and moved to the end
                part = part.flatten(2, 3).movedim(2, -1) @ matrix
            lines.addmm_(part.flatten(2, 3).movedim(2, -1).flatten(0, -2), matrices[-1])
        return y

    def spreading(self, y: Tensor, size: int) -> list[Tensor]:
        """Return per grid the matrix `(taps * n, size)` that resizes and shifts along one axis."""
        flat = (1,) * (y.ndim - 3)
        units = (torch.eye(n, dtype=y.dtype, device=y.device) for n in self.bins)
        rows = [self.resize(unit.view(1, *unit.shape, *flat), (size, *flat)) for unit in units]
        wide = F.pad(torch.cat(rows, dim=1).view(-1, size), (TAPS // 2, TAPS // 2))
        shifted = torch.stack([wide[:, tap : tap + size] for tap in range(TAPS)])
        return [matrix.flatten(0, 1) for matrix in shifted.split(self.bins, dim=1)]


class Projection(nn.Module):
    """Convolution of a feature map and grids, then norm, `FiLM` of a condition, and activation.

    Shape:
        `(B, C, *S)` and a list of grids, and the condition `(B, K)` if there is one ->
        `(B, C_out, *S)`
    """

    def __init__(
        self, conv: FoldedConvolution, norm: nn.Module, act: Act, film: FiLM | None = None
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.act = make_act(act)
        self.film = film

    def forward(
        self, x: Tensor, views: Sequence[Tensor], condition: Tensor | None = None
    ) -> Tensor:
        y = recomputed(self.norm, self.conv(x, views))
        return recomputed(self.act, modulated(self.film, y, condition))


def by_taps(grid: Tensor, kernel: Tensor) -> Tensor:
    """Multiply a grid `(B, W, n, ..)` by every tap of a kernel: `(B, C, taps, n, taps, n, ..)`."""
    bins, taps = "ijk"[: grid.ndim - 2], "xyz"[: grid.ndim - 2]
    pairs = "".join(tap + bin for tap, bin in zip(taps, bins, strict=True))
    return torch.einsum(f"bw{bins},cw{taps}->bc{pairs}", grid, kernel)
