"""Several maps of different sizes in, one map out."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from neurenix_ms.blocks import Act, Norm, make_act, make_norm
from neurenix_ms.config import Configured
from neurenix_ms.nd import (
    CONVOLUTIONS,
    CONVOLVE,
    SpatialDims,
    choose,
    expect_channels,
    expect_map,
    expect_positive,
)
from neurenix_ms.resize import Resize
from neurenix_ms.sizes import Target, expect_scales, expect_target, spatial, target_size

FusionMethod = Literal["concat", "sum", "mean", "avg", "max", "attention"]
AttentionKind = Literal["channel", "spatial", "both"]


def add(maps: Sequence[Tensor]) -> Tensor:
    """The sum of all maps."""
    return reduce(torch.add, maps)


def average(maps: Sequence[Tensor]) -> Tensor:
    """The mean of all maps."""
    return add(maps) / len(maps)


def greatest(maps: Sequence[Tensor]) -> Tensor:
    """The maximum of all maps, cell by cell."""
    return reduce(torch.maximum, maps)


REDUCTIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": add,
    "mean": average,
    "avg": average,
    "max": greatest,
}
METHODS = ("concat", *REDUCTIONS, "attention")


def expect_features(features: Sequence[Tensor], channels: Sequence[int], spatial_dims: int) -> None:
    """Refuse a list of other length, and maps of another rank, channel count or batch size."""
    if len(features) != len(channels):
        raise ValueError(f"expected {len(channels)} features, got {len(features)}")
    for index, (x, wanted) in enumerate(zip(features, channels, strict=True)):
        expect_map(x, spatial_dims)
        expect_channels(x, wanted, f"feature {index}")
        if x.shape[0] != features[0].shape[0]:
            raise ValueError(
                f"all features must have one batch size, got {features[0].shape[0]} in feature 0 "
                f"and {x.shape[0]} in feature {index}"
            )


def expect_widths(in_channels: Sequence[int], out_channels: int) -> list[int]:
    """Refuse an empty list of channels and counts below one."""
    if not in_channels:
        raise ValueError("in_channels must name at least one feature, got an empty list")
    expect_positive(**{f"in_channels[{i}]": n for i, n in enumerate(in_channels)})
    expect_positive(out_channels=out_channels)
    return list(in_channels)


class Projections(nn.Module):
    """Bring every feature to the same channels at its own size, then all to one size."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        spatial_dims: SpatialDims,
        target: Target,
        resize: Resize,
    ) -> None:
        super().__init__()
        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        self.points = nn.ModuleList(
            nn.Identity() if n == out_channels else conv(n, out_channels, 1) for n in in_channels
        )
        self.resize = resize
        self.target = target

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = target_size([spatial(x) for x in features], self.target)
        projected = zip(self.points, features, strict=True)
        return [self.resize(point(x), size) for point, x in projected]


class ConcatFusion(nn.Module):
    """Resize, concatenate, convolve with a 1x1 kernel: without ever making the concatenated map.

    A 1x1 convolution commutes with resizing, because one mixes channels and the other pixels. So each
    feature meets its slice of the weight at its own size, and only the results are resized and added.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        spatial_dims: SpatialDims,
        target: Target,
        resize: Resize,
        bias: bool,
    ) -> None:
        super().__init__()
        self.widths = list(in_channels)
        self.conv = CONVOLUTIONS[spatial_dims](sum(in_channels), out_channels, 1, bias=bias)
        self.convolve = CONVOLVE[spatial_dims]
        self.resize = resize
        self.target = target

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = target_size([spatial(x) for x in features], self.target)
        slices = self.conv.weight.split(self.widths, dim=1)
        biases = [self.conv.bias] + [None] * (len(self.widths) - 1)  # the sum needs it once
        total: Tensor | None = None
        for x, weight, bias in zip(features, slices, biases, strict=True):
            part = self.resize(self.convolve(x, weight, bias), size)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


class FeatureFusion(Configured, nn.Module):
    """Fuse maps of different channels and sizes into one.

    "concat" keeps all information and learns the mixture; "sum", "mean" and "max" cost nearly
    nothing; "attention" weighs the sources by what they contain. Use it behind any backbone.

    Args:
        in_channels: Channels of every feature.
        out_channels: Channels of the result.
        fusion_method: "concat", "sum", "mean" (also "avg"), "max" or "attention".
        spatial_dims: Number of spatial axes.
        target: Size of the result: "largest", "smallest", the index of a feature, or a size.
        mode: Interpolation, as in `MultiScaleTransform`.
        align_corners: As in `F.interpolate`.
        norm: Normalisation after the convolution of "concat".
        act: Activation after it.
        attention: Kind of "attention", see `AttentionFusion`.
        reduction: Its bottleneck.

    Shape:
        list of `(B, in_channels[i], *S_i)` -> `(B, out_channels, *T)`

    Raises:
        ValueError: If a name is unknown, the list is empty or of another length, or a feature has
            other channels, another rank or batch size; the message names its index.

    "concat" is resize, concatenate, 1x1 convolution, norm, activation, computed at the size of every
    source; the others project features whose channels differ by a 1x1 convolution with bias.

    Examples:
        >>> fuse = FeatureFusion([64, 128], 32)
        >>> fuse([torch.zeros(2, 64, 13, 9), torch.zeros(2, 128, 6, 4)]).shape
        torch.Size([2, 32, 13, 9])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        fusion_method: FusionMethod = "concat",
        *,
        spatial_dims: SpatialDims = 2,
        target: Target = "largest",
        mode: str = "bilinear",
        align_corners: bool = False,
        norm: Norm = "batch",
        act: Act = "relu",
        attention: AttentionKind = "channel",
        reduction: int = 16,
    ) -> None:
        super().__init__()
        if fusion_method not in METHODS:
            raise ValueError(f"fusion_method must be one of {list(METHODS)}, got {fusion_method!r}")
        self.in_channels = expect_widths(in_channels, out_channels)
        self.out_channels = out_channels
        self.fusion_method = fusion_method
        self.spatial_dims = spatial_dims
        self.target = expect_target(target, spatial_dims)
        self.mode = mode
        self.align_corners = align_corners
        self.norm = norm
        self.act = act
        self.attention = attention
        self.reduction = reduction
        resize = Resize(mode, spatial_dims, align_corners)
        place = (self.in_channels, out_channels, spatial_dims, self.target, resize)
        if fusion_method == "concat":
            self.fuse: nn.Module = nn.Sequential(
                ConcatFusion(*place, bias=norm is None),
                make_norm(norm, out_channels, spatial_dims),
                make_act(act),
            )
        elif fusion_method == "attention":
            self.fuse = AttentionFusion(
                in_channels,
                out_channels,
                spatial_dims=spatial_dims,
                attention=attention,
                reduction=reduction,
                target=target,
                mode=mode,
                align_corners=align_corners,
            )
        else:
            self.fuse = Projections(*place)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        expect_features(features, self.in_channels, self.spatial_dims)
        fused = self.fuse(features)
        return REDUCTIONS[self.fusion_method](fused) if isinstance(fused, list) else fused


class ScaleFusion(Configured, nn.Module):
    """Fuse maps that one network gave at several scales of its input.

    It is FeatureFusion for features of equal channels that are known by their scale; the result has
    the size of the feature of the largest scale, wherever that stands in the list.

    Args:
        scales: Relative scale of every feature.
        in_channels: Channels of all features.
        out_channels: Channels of the result.
        fusion_method: As in FeatureFusion.
        spatial_dims: Number of spatial axes.
        mode: Interpolation.
        align_corners: As in `F.interpolate`.
        norm: Normalisation after the convolution of "concat".
        act: Activation after it.
        attention: Kind of "attention".
        reduction: Its bottleneck.

    Shape:
        list of `(B, in_channels, *S_i)` -> `(B, out_channels, *S)` of the largest scale

    Raises:
        ValueError: If a scale is not finite and positive, or as FeatureFusion.

    Examples:
        >>> fuse = ScaleFusion([0.5, 1.0], 16, 8, "mean")
        >>> fuse([torch.zeros(1, 16, 6, 4), torch.zeros(1, 16, 13, 9)]).shape
        torch.Size([1, 8, 13, 9])
    """

    def __init__(
        self,
        scales: Sequence[float],
        in_channels: int,
        out_channels: int,
        fusion_method: FusionMethod = "concat",
        *,
        spatial_dims: SpatialDims = 2,
        mode: str = "bilinear",
        align_corners: bool = False,
        norm: Norm = "batch",
        act: Act = "relu",
        attention: AttentionKind = "channel",
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.scales = expect_scales(scales)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.fusion_method = fusion_method
        self.spatial_dims = spatial_dims
        self.mode = mode
        self.align_corners = align_corners
        self.norm = norm
        self.act = act
        self.attention = attention
        self.reduction = reduction
        self.fuse = FeatureFusion(
            [in_channels] * len(self.scales),
            out_channels,
            fusion_method,
            spatial_dims=spatial_dims,
            target=self.scales.index(max(self.scales)),
            mode=mode,
            align_corners=align_corners,
            norm=norm,
            act=act,
            attention=attention,
            reduction=reduction,
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.fuse(features)


class AttentionFusion(Configured, nn.Module):
    """Weigh the sources against each other, per channel, per pixel or both, and add them.

    Use it where which scale matters depends on the input. A fresh module returns the mean of the
    projected sources, and learns from there.

    Args:
        in_channels: Channels of every feature.
        out_channels: Channels of the result; features with others are projected by a 1x1 convolution.
        spatial_dims: Number of spatial axes.
        attention: "channel" looks at the global mean (not tileable), "spatial" at the surroundings of
            a pixel, "both" adds their scores.
        reduction: Width of the bottleneck is `out_channels // reduction`,
        min_hidden: but not below this.
        target: Size of the result: "largest", "smallest", the index of a feature, or a size.
        mode: Interpolation.
        align_corners: As in `F.interpolate`.

    Shape:
        list of K `(B, in_channels[i], *S_i)` -> `(B, out_channels, *T)`

    Raises:
        ValueError: If a name is unknown, the list is empty or of another length, or a feature has
            other channels, another rank or batch size.

    Source: "channel" Li et al. 2019, "Selective Kernel Networks", equations 1 to 6; "spatial" Chen et
    al. 2016, "Attention to Scale", equations 1 and 2.

    Examples:
        >>> fuse = AttentionFusion([8, 16], 8)
        >>> features = [torch.zeros(1, 8, 13, 9), torch.zeros(1, 16, 6, 4)]
        >>> fuse(features).shape, fuse.attention_weights(features).shape
        (torch.Size([1, 8, 13, 9]), torch.Size([1, 2, 8, 1, 1]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        spatial_dims: SpatialDims = 2,
        attention: AttentionKind = "channel",
        reduction: int = 16,
        min_hidden: int = 32,
        target: Target = "largest",
        mode: str = "bilinear",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = expect_widths(in_channels, out_channels)
        expect_positive(reduction=reduction, min_hidden=min_hidden)
        if attention not in ("channel", "spatial", "both"):
            raise ValueError(
                f"attention must be one of ['channel', 'spatial', 'both'], got {attention!r}"
            )
        self.out_channels = out_channels
        self.spatial_dims = spatial_dims
        self.attention = attention
        self.reduction = reduction
        self.min_hidden = min_hidden
        self.target = expect_target(target, spatial_dims)
        self.mode = mode
        self.align_corners = align_corners
        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        resize = Resize(mode, spatial_dims, align_corners)
        self.project = Projections(
            self.in_channels, out_channels, spatial_dims, self.target, resize
        )
        hidden = max(out_channels // reduction, min_hidden)
        count = len(self.in_channels)
        self.channel_scores: nn.Sequential | None = None
        self.spatial_scores: nn.Sequential | None = None
        if attention != "spatial":
            self.channel_scores = nn.Sequential(
                conv(out_channels, hidden, 1), nn.ReLU(), conv(hidden, count * out_channels, 1)
            )
            start_at_zero(self.channel_scores)
        if attention != "channel":
            self.spatial_scores = nn.Sequential(
                conv(count * out_channels, hidden, 3, padding=1), nn.ReLU(), conv(hidden, count, 1)
            )
            start_at_zero(self.spatial_scores)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        expect_features(features, self.in_channels, self.spatial_dims)
        maps = self.project(features)
        weights = self._weights(maps).unbind(dim=1)
        return add([w * x for w, x in zip(weights, maps, strict=True)])

    def attention_weights(self, features: Sequence[Tensor]) -> Tensor:
        """Weights of the K sources: `(B, K, C, 1..)`, `(B, K, 1, *T)` or `(B, K, C, *T)`."""
        expect_features(features, self.in_channels, self.spatial_dims)
        return self._weights(self.project(features))

    def _weights(self, maps: Sequence[Tensor]) -> Tensor:
        scores: list[Tensor] = []
        if self.channel_scores is not None:
            axes = tuple(range(2, 2 + self.spatial_dims))
            means = add(maps).mean(axes, keepdim=True)
            scores.append(
                rearrange(self.channel_scores(means), "b (k c) ... -> b k c ...", k=len(maps))
            )
        if self.spatial_scores is not None:
            scores.append(self.spatial_scores(torch.cat(list(maps), dim=1)).unsqueeze(2))
        return torch.softmax(add(scores), dim=1)


def start_at_zero(scores: nn.Sequential) -> None:
    """Let the last layer score every source alike, so that training starts at the mean."""
    for parameter in scores[-1].parameters():
        nn.init.zeros_(parameter)


class PyramidFusion(Configured, nn.Module):
    """A feature pyramid: hand what the coarse maps know down to the finer ones.

    Use it behind a backbone, for heads that read every scale. The list goes in and comes out fine to
    coarse.

    Args:
        in_channels: Channels of every map, or one number for all.
        out_channels: Channels of every result; by default those of the (first) map.
        num_scales: Number of maps, where `in_channels` is one number.
        spatial_dims: Number of spatial axes.

    Shape:
        list of `(B, in_channels[i], *S_i)` -> list of `(B, out_channels, *S_i)`

    Raises:
        ValueError: If a count is below 1, the list is of another length, or a map has other channels,
            another rank or batch size.

    Source: Lin et al. 2017, "Feature Pyramid Networks", section 3; arithmetic of torchvision's
    `FeaturePyramidNetwork`.

    Examples:
        >>> neck = PyramidFusion([8, 16], 4)
        >>> [tuple(y.shape) for y in neck([torch.zeros(1, 8, 13, 9), torch.zeros(1, 16, 6, 4)])]
        [(1, 4, 13, 9), (1, 4, 6, 4)]
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | None = None,
        num_scales: int = 4,
        *,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        expect_positive(num_scales=num_scales)
        widths = [in_channels] * num_scales if isinstance(in_channels, int) else list(in_channels)
        out = widths[0] if out_channels is None and widths else (out_channels or 0)
        self.widths = expect_widths(widths, out)
        self.in_channels = in_channels
        self.out_channels = out
        self.num_scales = len(widths)
        self.spatial_dims = spatial_dims
        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        self.laterals = nn.ModuleList(conv(n, out, 1) for n in widths)
        self.outputs = nn.ModuleList(conv(out, out, 3, padding=1) for _ in widths)
        self.resize = Resize("nearest", spatial_dims)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        expect_features(features, self.widths, self.spatial_dims)
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + self.resize(maps[finer + 1], spatial(maps[finer]))
        return [output(x) for output, x in zip(self.outputs, maps, strict=True)]
