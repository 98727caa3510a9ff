"""Plain PyTorch implementations of the measured blocks, without this package.

Weights are registered in the order of ours, so that `with_weights_of` can copy them by position.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Model = TypeVar("Model", bound=nn.Module)

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ADAPTIVE_AVG_POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
AVG_POOL_FUNCTION = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL_FUNCTION = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE_MAX_POOL_FUNCTION = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def with_weights_of(ours: nn.Module, plain: Model) -> Model:
    """Return `plain` with the parameters, running statistics and mode of `ours`."""
    values = list(ours.state_dict().values())
    plain.load_state_dict(dict(zip(plain.state_dict(), values, strict=True)))
    return plain.train(ours.training)


def stacked_pools(x: Tensor, pool_sizes: Sequence[int], pool_type: str) -> Tensor:
    """Pool with odd windows at stride 1 and concatenate the results."""
    maps = []
    for k in pool_sizes:
        if k == 1:
            maps.append(x)
        elif pool_type == "avg":
            pool = AVG_POOL_FUNCTION[x.ndim - 2]
            maps.append(pool(x, k, stride=1, padding=k // 2, count_include_pad=False))
        else:
            maps.append(MAX_POOL_FUNCTION[x.ndim - 2](x, k, stride=1, padding=k // 2))
    return torch.cat(maps, dim=1)


def pooled_grids(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Concatenate the bins of several grids to one vector."""
    pool = ADAPTIVE_MAX_POOL_FUNCTION[x.ndim - 2]
    return torch.cat([pool(x, n).flatten(1) for n in bins], dim=1)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode=LINEAR[x.ndim - 2], align_corners=False)


def pooled_branches(in_channels: int, width: int, bins: Sequence[int], dims: int) -> nn.ModuleList:
    """Build branches of adaptive pooling, convolution, norm (except for one bin) and ReLU."""
    pool, conv, norm = ADAPTIVE_AVG_POOL[dims], CONV[dims], BATCH_NORM[dims]
    branches = []
    for n in bins:
        layers = [pool(n), conv(in_channels, width, 1, bias=n == 1)]
        layers += [] if n == 1 else [norm(width)]
        branches.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
    return nn.ModuleList(branches)


class PyramidViews(nn.Module):
    """Concatenate pooled branches, resized with aligned corners."""

    def __init__(self, in_channels: int, width: int, bins: Sequence[int], dims: int) -> None:
        super().__init__()
        self.branches = pooled_branches(in_channels, width, bins, dims)

    def forward(self, x: Tensor) -> Tensor:
        size, mode = x.shape[2:], LINEAR[x.ndim - 2]
        views = [
            F.interpolate(branch(x), size, mode=mode, align_corners=True)
            for branch in self.branches
        ]
        return torch.cat([x, *views], dim=1)


class PyramidPooling(nn.Module):
    """Resize, concatenate and convolve pooled branches."""

    def __init__(self, in_channels: int, out_channels: int, bins: Sequence[int], dims: int) -> None:
        super().__init__()
        width = in_channels // len(bins)
        conv, norm = CONV[dims], BATCH_NORM[dims]
        self.branches = pooled_branches(in_channels, width, bins, dims)
        self.projection = nn.Sequential(
            conv(in_channels + len(bins) * width, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        views = [resized(branch(x), x.shape[2:]) for branch in self.branches]
        return self.projection(torch.cat([x, *views], dim=1))


class AtrousPooling(nn.Module):
    """Dilated branches and the enlarged mean, concatenated and convolved."""

    def __init__(
        self, in_channels: int, out_channels: int, dilations: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        conv, norm = CONV[dims], BATCH_NORM[dims]

        def branch(*first: nn.Module) -> nn.Sequential:
            return nn.Sequential(*first, norm(out_channels), nn.ReLU(inplace=True))

        point = partial(conv, in_channels, out_channels, 1, bias=False)
        dilated = partial(conv, in_channels, out_channels, 3, bias=False)
        self.branches = nn.ModuleList(
            [branch(point()), *(branch(dilated(padding=d, dilation=d)) for d in dilations)]
        )
        self.image = branch(ADAPTIVE_AVG_POOL[dims](1), point())
        self.project = branch(
            conv((len(dilations) + 2) * out_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        return self.project(torch.cat([*maps, resized(self.image(x), x.shape[2:])], dim=1))


class ConcatFusion(nn.Module):
    """Resize, concatenate and apply a 1x1 convolution."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(sum(in_channels), out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        x = torch.cat([resized(x, size) for x in features], dim=1)
        return self.act(self.norm(self.conv(x)))


class SumFusion(nn.Module):
    """Project where channels differ, resize and add."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.points = nn.ModuleList(
            nn.Identity() if n == out_channels else nn.Conv2d(n, out_channels, 1)
            for n in in_channels
        )

    def aligned(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = features[0].shape[2:]
        pairs = zip(self.points, features, strict=True)
        return [resized(point(x), size) for point, x in pairs]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return sum(self.aligned(features))


class MeanFusion(SumFusion):
    """Average the sources instead of adding them."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return super().forward(features) / len(features)


class MaxFusion(SumFusion):
    """Take the maximum of the sources instead of the sum."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return reduce(torch.maximum, self.aligned(features))


class AttentionFusion(SumFusion):
    """Stack the sources, score the channels, apply softmax over the sources, and add."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, hidden: int = 32) -> None:
        super().__init__(in_channels, out_channels)
        self.scores = nn.Sequential(
            nn.Conv2d(out_channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, len(in_channels) * out_channels, 1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = torch.stack(self.aligned(features), dim=1)
        scores = self.scores(maps.sum(1).mean((2, 3), keepdim=True))
        weights = scores.view(scores.shape[0], maps.shape[1], -1, 1, 1).softmax(dim=1)
        return (weights * maps).sum(1)


def double_conv(
    in_channels: int, out_channels: int, dims: int, middle: int | None = None, bias: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and ReLU, twice."""
    widths = [in_channels, out_channels if middle is None else middle, out_channels]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        conv = CONV[dims](a, b, 3, padding=1, bias=bias)
        layers += [conv, BATCH_NORM[dims](b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def call(block: nn.Module, *inputs: Tensor) -> Tensor:
    return block(*inputs)


def call_checkpointed(block: nn.Module, *inputs: Tensor) -> Tensor:
    return checkpoint(block, *inputs, use_reentrant=False)


class UNet(nn.Module):
    """A U-Net as it is usually written; `run` calls its blocks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        dims: int,
        run: Callable[..., Tensor] = call,
    ) -> None:
        super().__init__()
        self.run = run
        widths = [in_channels, *features, features[-1]]
        self.downs = nn.ModuleList(double_conv(a, b, dims) for a, b in pairwise(widths))
        self.pool = MAX_POOL[dims](2)
        self.up = nn.Upsample(scale_factor=2, mode=LINEAR[dims], align_corners=False)
        self.ups = nn.ModuleList()
        deep = features[-1]
        for depth in reversed(range(len(features))):
            out = features[max(depth - 1, 0)]
            joined = features[depth] + deep
            self.ups.append(double_conv(joined, out, dims, middle=joined // 2))
            deep = out
        self.head = CONV[dims](features[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs[:-1]:
            x = self.run(down, x)
            skips.append(x)
            x = self.pool(x)
        x = self.run(self.downs[-1], x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = self.run(up, torch.cat([skip, self.up(x)], dim=1))
        return self.head(x)


class TransposedUNet(nn.Module):
    """A U-Net with transposed convolutions, instance norm and leaky ReLU."""

    def __init__(self, like: Any, slope: float) -> None:
        super().__init__()
        dims, features = like.spatial_dims, list(like.features)
        widths = [like.in_channels, *features, like.bottleneck_channels]
        block = partial(leaky_block, dims=dims, slope=slope)
        self.downs = nn.ModuleList(block(a, b) for a, b in pairwise(widths))
        self.pool = MAX_POOL[dims](2)
        self.ups = nn.ModuleList(
            nn.ModuleList([TRANSPOSED[dims](deep, skip, 2, stride=2), block(2 * skip, skip)])
            for skip, deep in reversed(list(pairwise(widths[1:])))
        )
        self.head = CONV[dims](features[0], like.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs[:-1]:
            skips.append(down(x))
            x = self.pool(skips[-1])
        x = self.downs[-1](x)
        for up, block in self.ups:
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def leaky_block(in_channels: int, out_channels: int, dims: int, slope: float) -> nn.Sequential:
    """Convolution, instance norm and leaky ReLU, twice."""
    layers: list[nn.Module] = []
    for a, b in ((in_channels, out_channels), (out_channels, out_channels)):
        norm = INSTANCE_NORM[dims](b, affine=True)
        layers += [CONV[dims](a, b, 3, padding=1), norm, nn.LeakyReLU(slope, inplace=True)]
    return nn.Sequential(*layers)
