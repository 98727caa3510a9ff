"""Fusion of feature maps of different sizes and channels into one."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    CONVOLVE,
    SpatialDims,
)
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.orders import check_order_of_scales
from neurenix_ms._core.sizes import Size, Target, check_scales, check_target, spatial, target_size
from neurenix_ms._core.tracing import entries, one_module, sizes_are_open
from neurenix_ms.layers.blocks import modulated
from neurenix_ms.layers.conditioning import film_of, given_condition
from neurenix_ms.layers.inference import NormAndAct
from neurenix_ms.layers.naming import Act, Norm, make_act, make_norm
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.attention import AttentionFusion, AttentionKind
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    Projections,
    add,
    as_list,
    average,
    check_features,
    check_widths,
    greatest,
)

FusionMethod = Literal["concat", "sum", "mean", "avg", "max", "attention"]


COMBINATIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": add,
    "mean": average,
    "avg": average,
    "max": greatest,
}
METHODS = ("concat", *COMBINATIONS, "attention")


SMALL = 2**18  # multiplications


class SlicedConvolution(nn.Module):
    """Resize, concatenate and convolve with a 1x1 kernel, without the concatenated tensor.

    A 1x1 convolution commutes with resizing, because one mixes channels and the other pixels. Each
    feature map is therefore convolved with its slice of the weight at its own size, and only the results
    are resized and added.

    Shape:
        list of K `(B, C_i, *S_i)` and a size `T` -> `(B, C, *T)`
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        spatial_dims: SpatialDims,
        resize: Resize,
        bias: bool,
    ) -> None:
        super().__init__()
        self.widths = list(in_channels)
        conv = CONVOLUTIONS[spatial_dims](sum(in_channels), out_channels, 1, bias=bias)
        # parameters of this module, because sharded weights are complete only in its own forward
        self.weight, self.bias = conv.weight, conv.bias
        self.convolve = CONVOLVE[spatial_dims]
        self.resize = resize

    @one_module
    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        if self.is_small(features):
            return self.convolve(self._stacked(features, size), self.weight, self.bias)
        slices = self.weight.split(self.widths, dim=1)
        biases = [self.bias] + [None] * (len(self.widths) - 1)  # added once to the sum
        total: Tensor | None = None
        for x, weight, bias in zip(features, slices, biases, strict=True):
            part = self.resize(self.convolve(x, weight, bias), size)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _stacked(self, features: Sequence[Tensor], size: Size) -> Tensor:
        resize = self.resize
        if is_observed(resize):
            return torch.cat([resize(x, size) for x in features], dim=1)
        return torch.cat(
            [x if x.shape[2:] == size else resize.resampled_unchecked(x, size) for x in features],
            dim=1,
        )

    def is_small(self, features: Sequence[Tensor]) -> bool:
        """Return whether one convolution is faster than several calls, as measured."""
        if sizes_are_open() or torch._C._is_torch_function_mode_enabled():
            return False  # a traced model, or one that runs in tiles, uses one form for all sizes
        return sum(x.numel() for x in features) * len(self.weight) <= SMALL


class ConcatFusion(nn.Module):
    """Resize all feature maps to the target size and mix their channels.

    Shape:
        list of K `(B, C_i, *S_i)` -> `(B, C, *T)`
    """

    def __init__(self, conv: SlicedConvolution, target: Target) -> None:
        super().__init__()
        self.conv = conv
        self.target = target

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        features = entries(features, len(self.conv.widths))
        return self.conv(features, target_size([spatial(x) for x in features], self.target))


class FeatureFusion(Configured, nn.Module):
    """Fuse feature maps of different channels and sizes into one.

    Use it after any backbone. "concat" learns a linear mixture of all channels; "sum", "mean" and "max"
    cost little; "attention" is a weighted sum whose weights depend on the input.

    Args:
        in_channels: Channels of every feature map, or a `Backbone` that returns them.
        out_channels: Channels of the result.
        fusion_method: "concat", "sum", "mean" (also "avg"), "max" or "attention".
        spatial_dims: Number of spatial axes.
        target: Size of the result: "largest", "smallest", the index of a feature map, or a size.
        mode: Interpolation, a mode of `F.interpolate`; "bilinear" means linear for any number of axes.
        align_corners: As in `F.interpolate`.
        norm: Normalization after the convolution of "concat".
        act: Activation after the normalization.
        attention: Kind of "attention", see `AttentionFusion`.
        reduction: Divisor for its hidden width, see `AttentionFusion`.
        condition_channels: Length of the vector on which the result is conditioned, as blocks in `UNet`:
            that of "concat" after the norm.

    Shape:
        list of `(B, in_channels[i], *S_i)`, or a dict of them in that order, and a `condition`
        `(B, condition_channels)` if the module has one -> `(B, out_channels, *T)`

    Raises:
        ValueError: If a name is unknown, the list is empty or has the wrong length, or a feature map has
            the wrong rank, number of channels or batch size (the message names its index), or the
            condition does not fit.

    "concat" resizes, concatenates, and applies a 1x1 convolution, norm and activation; the convolution
    is computed at the size of every feature map. The other methods project feature maps whose channels
    differ from `out_channels` by a 1x1 convolution with bias.

    Examples:
        >>> import torch
        >>> from neurenix_ms import FeatureFusion
        >>> fuse = FeatureFusion([64, 128], 32)
        >>> fuse([torch.zeros(2, 64, 13, 9), torch.zeros(2, 128, 6, 4)]).shape
        torch.Size([2, 32, 13, 9])
    """

    @checked
    def __init__(
        self,
        in_channels: Channels,
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
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if fusion_method not in METHODS:
            raise ValueError(f"fusion_method must be one of {list(METHODS)}, got {fusion_method!r}")
        self.in_channels = check_widths(in_channels, out_channels)
        self.target = check_target(target, spatial_dims)
        resize = Resize(mode, spatial_dims, align_corners)
        if fusion_method == "concat":
            conv = SlicedConvolution(
                self.in_channels, out_channels, spatial_dims, resize, bias=norm is None
            )
            self.fuse: nn.Module = NormAndAct(
                ConcatFusion(conv, self.target),
                make_norm(norm, out_channels, spatial_dims),
                make_act(act),
            )
        elif fusion_method == "attention":
            self.fuse = AttentionFusion(
                self.in_channels,
                out_channels,
                spatial_dims=spatial_dims,
                attention=attention,
                reduction=reduction,
                target=target,
                mode=mode,
                align_corners=align_corners,
            )
        else:
            self.fuse = Projections(
                self.in_channels, out_channels, spatial_dims, self.target, resize
            )
        self.film = film_of(condition_channels, out_channels)

    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor:
        features = as_list(features)
        check_features(features, self.in_channels, self.spatial_dims)
        condition = given_condition(features[-1], condition, self.condition_channels)
        if self.fusion_method == "concat":
            return self.fuse(features, *(() if self.film is None else (self.film, condition)))
        fused = self.fuse(features)
        fused = COMBINATIONS[self.fusion_method](fused) if isinstance(fused, list) else fused
        return modulated(self.film, fused, condition)


class ScaleFusion(Configured, nn.Module):
    """Fuse feature maps of one network at several scales of its input.

    It is a `FeatureFusion` for feature maps of equal channels. The result has the size of the feature
    map of the largest scale, at any position in the list.

    Args:
        scales: Relative scale of every feature map.
        in_channels: Channels of all feature maps.
        out_channels: Channels of the result.
        fusion_method: "concat", "sum", "mean" (also "avg"), "max" or "attention".
        spatial_dims: Number of spatial axes.
        mode: Interpolation.
        align_corners: As in `F.interpolate`.
        norm: Normalization after the convolution of "concat".
        act: Activation after the normalization.
        attention: Kind of "attention", see `AttentionFusion`.
        reduction: Divisor for its hidden width, see `AttentionFusion`.
        condition_channels: Length of the vector on which the result is conditioned, as blocks in `UNet`:
            that of "concat" after the norm.

    Shape:
        list of `(B, in_channels, *S_i)`, and a `condition` `(B, condition_channels)` if the module has
        one -> `(B, out_channels, *S)` of the largest scale

    Raises:
        ValueError: If a scale is not finite and positive, a feature map of a larger scale is smaller, or
            as for `FeatureFusion`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import ScaleFusion
        >>> fuse = ScaleFusion([0.5, 1.0], 16, 8, "mean")
        >>> fuse([torch.zeros(1, 16, 6, 4), torch.zeros(1, 16, 13, 9)]).shape
        torch.Size([1, 8, 13, 9])
    """

    @checked
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
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.scales = check_scales(scales)
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
            condition_channels=condition_channels,
        )

    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor:
        features = as_list(features)
        check_features(features, self.fuse.in_channels, self.spatial_dims)
        check_order_of_scales(features, self.scales)
        return self.fuse(features, condition)
