"""Pooling over several window sizes or grids."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import RenamedAttribute, renamed_arguments
from neurenix_ms._core.dims import (
    POOLS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_module
from neurenix_ms.backbones import Backbone
from neurenix_ms.layers.adaptive_pool import AdaptivePool
from neurenix_ms.layers.blocks import ChannelDropout, ConvNormAct
from neurenix_ms.layers.conditioning import film_of, given_condition, keyword
from neurenix_ms.layers.naming import Act, Norm, check_normalizable, make_norm
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.folding import FoldedConvolution, Projection

PoolType = Literal["avg", "max"]


class Window(nn.Module):
    """Pool with stride 1 over one window and keep the size; padding has no influence.

    Shape:
        `(B, C, *S)` -> the same
    """

    def __init__(self, kernel: list[int], pool_type: PoolType, spatial_dims: SpatialDims) -> None:
        super().__init__()
        pool = choose(choose(POOLS, pool_type, "pool_type"), spatial_dims, "spatial_dims")
        before, after = [(k - 1) // 2 for k in kernel], [k // 2 for k in kernel]
        self.kernel = kernel
        self.pool_type = pool_type
        self.border: list[int] = []
        # torch has no average over a volume that is smaller than the window, even with padding
        if before == after and (pool_type, spatial_dims) != ("avg", 3):
            real_only = {"count_include_pad": False} if pool_type == "avg" else {}
            self.pool = pool(kernel, stride=1, padding=before, **real_only)
        else:  # its padding is also equal on both sides, which does not fit windows of even size
            self.pool = pool(kernel, stride=1)
            self.border = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        if not self.border:
            return self.pool(x)
        if self.pool_type == "max":
            return self.pool(F.pad(x, self.border, value=-torch.inf))
        wide = zip(self.kernel, spatial(x), strict=True)
        real = F.pad(x.new_ones([1, 1, *(n if k > 1 else 1 for k, n in wide)]), self.border)
        return self.pool(F.pad(x, self.border)) / self.pool(real)


class SamePool(nn.Sequential):
    """Pool with stride 1 over a window of `kernel_size` along each axis and keep the size.

    A maximum, and an average over the pixels inside the image, can be computed one axis after the
    other, at a cost of `kernel_size` per axis instead of the number of pixels in the window. In one and
    two dimensions windows of size up to 3 are faster in one step.

    Shape:
        `(B, C, *S)` -> the same
    """

    def __init__(self, kernel_size: int, pool_type: PoolType, spatial_dims: SpatialDims) -> None:
        axes = range(spatial_dims)
        kernels = [[kernel_size if a == axis else 1 for a in axes] for axis in axes]
        if kernel_size <= 3 and spatial_dims < 3:
            kernels = [[kernel_size] * spatial_dims]
        super().__init__(*(Window(kernel, pool_type, spatial_dims) for kernel in kernels))


class MultiScalePooling(Configured, nn.Module):
    """Pool a feature map over windows of several sizes with stride 1 and concatenate the results.

    Use it in the bottleneck of a network to enlarge the receptive field without loss of resolution. It
    has no parameters. For context from the whole feature map use `PyramidPooling`.

    Args:
        pool_sizes: Window sizes in pixels; 1 is the input itself.
        pool_type: "avg" (over the pixels of the window inside the feature map) or "max".
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> `(B, C * len(pool_sizes), *S)`, in the order of `pool_sizes`

    Raises:
        ValueError: If there is no window, one is below 1, or the input has the wrong rank.

    The windows are those of the spatial pyramid block of YOLOv3-SPP.

    Examples:
        >>> import torch
        >>> from neurenix_ms import MultiScalePooling
        >>> pool = MultiScalePooling([1, 5, 9], "max")
        >>> pool(torch.zeros(2, 8, 13, 9)).shape
        torch.Size([2, 24, 13, 9])
    """

    @checked
    def __init__(
        self,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        pool_type: PoolType = "avg",
        *,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        self.pool_sizes = check_integers("pool_sizes", pool_sizes, 1, min_length=1)
        choose(choose(POOLS, pool_type, "pool_type"), spatial_dims, "spatial_dims")
        self.pools = nn.ModuleList(
            nn.Identity() if k == 1 else SamePool(k, pool_type, spatial_dims)
            for k in self.pool_sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        return torch.cat([pool(x) for pool in self.pools], dim=1)


class PooledBranch(nn.Sequential):
    """Pool over bins, and mix the channels of every bin, conditioned if the convolution is.

    Shape:
        `(B, C_in, *S)`, and the condition `(B, K)` if there is one -> `(B, C_out, *(n,) * axes)`
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        pool, conv = self
        y: Tensor = conv(pool(x), **keyword("condition", condition))
        return y


class PyramidPooling(Configured, nn.Module):
    """Concatenate a feature map with its averages over coarse grids, as context for every pixel.

    Use it on the coarsest feature map of a network if the class of a pixel depends on the whole scene.
    The result depends on the size of the feature map, so the module cannot run in tiles.

    Args:
        in_channels: Channels of the input, or a `Backbone` whose coarsest feature map it is.
        out_channels: Channels of the result; without `project`, of every branch.
        bins: Bins per axis, one branch each.
        spatial_dims: Number of spatial axes.
        pool_type: "avg" or "max" over the pixels of a bin.
        branch_channels: Channels of a branch; by default `in_channels // len(bins)` with `project`.
        project: Whether a 3x3 convolution to `out_channels` follows.
        norm: Normalization of branches and projection; the one-bin branch has none.
        act: Activation of branches and projection.
        mode: Interpolation of a branch to the size of the input.
        align_corners: As in `F.interpolate`.
        dropout: Channel dropout probability after the projection.
        condition_channels: Length of a vector on which branches and projection are conditioned, as in
            `UNet`.

    Shape:
        `(B, in_channels, *S)`, and a `condition` `(B, condition_channels)` if the module has one ->
        `(B, out_channels, *S)`, or without `project`
        `(B, in_channels + len(bins) * branch_channels, *S)`, the input first

    Raises:
        ValueError: If a branch has no channels, a number of bins is below 1, the input has the wrong
            number of channels or axes, or the condition does not fit.

    Source: Zhao et al. 2017, "Pyramid Scene Parsing Network", section 3.2. Deviation: the one-bin
    branch has a bias instead of a norm, so that a batch of one can be trained.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PyramidPooling
        >>> pool = PyramidPooling(64, 32)
        >>> pool(torch.zeros(2, 64, 13, 9)).shape
        torch.Size([2, 32, 13, 9])
    """

    pool_sizes = RenamedAttribute("bins")

    @renamed_arguments(pool_sizes="bins")
    @checked
    def __init__(
        self,
        in_channels: int | Backbone,
        out_channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        *,
        spatial_dims: SpatialDims = 2,
        pool_type: PoolType = "avg",
        branch_channels: int | None = None,
        project: bool = True,
        norm: Norm = "batch",
        act: Act = "relu",
        mode: str = "bilinear",
        align_corners: bool = False,
        dropout: float = 0.0,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_channels, Backbone):
            in_channels = in_channels.channels[-1]
        check_positive(in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.bins = check_integers("bins", bins, 1, min_length=1)
        width = branch_channels
        if width is None:
            width = in_channels // len(self.bins) if project else out_channels
        if width < 1:
            raise ValueError(
                f"every one of the {len(self.bins)} branches needs a channel, "
                f"got in_channels {in_channels} and branch_channels {branch_channels}"
            )
        point = partial(
            ConvNormAct,
            spatial_dims=spatial_dims,
            kernel_size=1,
            act=act,
            condition_channels=condition_channels,
        )
        self.branches = nn.ModuleList(
            PooledBranch(
                AdaptivePool(n, pool_type, spatial_dims),
                point(in_channels, width, norm=None if n == 1 else norm),
            )
            for n in self.bins
        )
        self.resize = Resize(mode, spatial_dims, align_corners)
        self.projection: Projection | None = None
        if project:
            conv = FoldedConvolution(
                in_channels,
                width,
                self.bins,
                out_channels,
                self.resize,
                spatial_dims,
                bias=norm is None,
            )
            film = film_of(condition_channels, out_channels)
            self.projection = Projection(
                conv, make_norm(norm, out_channels, spatial_dims), act, film
            )
        self.drop = ChannelDropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        if self.project:
            check_normalizable(self.norm, self.training, x)
        condition = given_condition(x, condition, self.condition_channels)
        given = keyword("condition", condition)
        views = [branch(x, **given) for branch in self.branches]
        if self.projection is None:
            return torch.cat([x, *(self.resize(view, spatial(x)) for view in views)], dim=1)
        return self.drop(self.projection(x, views, **given))


class SpatialPyramidPooling(Configured, nn.Module):
    """Pool over grids of 1, 2, 4, ... bins per axis and concatenate all bins into one vector.

    Inputs of any spatial size give vectors of the same length, so a linear layer can follow. Use it for
    classifiers of images of any size that need coarse positions.

    Args:
        num_levels: Number of grids; the i-th has `2**i` bins per axis.
        pool_type: "max" or "avg" over the pixels of a bin.
        spatial_dims: Number of spatial axes.
        bins: Bins per axis of each grid, in place of `num_levels`.

    Shape:
        `(B, C, *S)` -> `(B, C * sum(n**spatial_dims for n in bins))`; grid after grid, each with
        the bins of one channel side by side

    Raises:
        ValueError: If a grid has no bins, or the input does not have `spatial_dims` spatial axes.

    Source: He et al. 2014, "Spatial Pyramid Pooling in Deep Convolutional Networks", section 2.2;
    edges of the bins as in torch's adaptive pooling.

    Examples:
        >>> import torch
        >>> from neurenix_ms import SpatialPyramidPooling
        >>> pool = SpatialPyramidPooling(num_levels=3)
        >>> pool(torch.zeros(2, 8, 13, 9)).shape
        torch.Size([2, 168])
    """

    @checked
    def __init__(
        self,
        num_levels: int = 3,
        pool_type: PoolType = "max",
        *,
        spatial_dims: SpatialDims = 2,
        bins: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if bins is None:
            check_positive(num_levels=num_levels)
        self.bins = [2**k for k in range(num_levels)] if bins is None else list(bins)
        if not self.bins or min(self.bins) < 1:
            raise ValueError(f"every grid needs one bin or more, got bins {self.bins}")
        self.num_levels = len(self.bins)
        self.grids = nn.ModuleList(AdaptivePool(n, pool_type, spatial_dims) for n in self.bins)

    def output_length(self, channels: int) -> int:
        """Return the length of the output vector for an input of `channels` channels."""
        return channels * sum(n**self.spatial_dims for n in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        return torch.cat([grid(x).flatten(1) for grid in self.grids], dim=1)
