"""Decoders for outputs per pixel over the feature maps of any backbone: UPerNet and DeepLab."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_positive
from neurenix_ms._core.orders import check_descending
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import entries
from neurenix_ms.checkpointing import recomputed, recomputes
from neurenix_ms.layers.blocks import ChannelDropout, ConvNormAct, modulated
from neurenix_ms.layers.conditioning import film_of, given_condition, keyword
from neurenix_ms.layers.naming import Act, Norm, make_act, make_norm
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.atrous import (
    AtrousPyramidPooling,
    Branch,
    DilatedConvolution,
    JoinedProjection,
)
from neurenix_ms.multiscale.decoder import FinalActivation, Head
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    as_list,
    check_features,
    check_widths,
)
from neurenix_ms.multiscale.pooling import PyramidPooling


class UPerHead(Configured, nn.Module):
    """Decode feature maps of all levels together: global context, a feature pyramid, one convolution.

    Use it on a backbone whose levels all contribute to the output, such as a transformer. It costs more
    than a `UNetDecoder` of the same width, as every level is convolved at the finest size.

    Args:
        in_channels: Channels of every feature map, finest first, or a `Backbone` that makes them.
        out_channels: Channels of the output.
        hidden_channels: Channels of every level within the head.
        bins: Bins per axis of the pyramid pooling of the coarsest level.
        spatial_dims: Number of spatial axes.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: Activation after every norm.
        dropout: Channel dropout probability before the last convolution.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length of the vector on which every convolution is conditioned; None: none.

    Shape:
        list of `(B, in_channels[i], *S_i)`, finest first, or a dict of them, and a `condition`
        `(B, condition_channels)` if the head has one -> `(B, out_channels, *S_0)`

    Raises:
        ValueError: If a count is below 1, the list is of another length or order, a feature map has
            other channels, another rank or batch size, or the condition does not fit.

    Source: Xiao et al. 2018, "Unified Perceptual Parsing", figure 4. The convolution over all levels is
    taken level by level, without concatenating them.

    Examples:
        >>> from neurenix_ms import UPerHead
        >>> head = UPerHead([8, 16, 32], 2, hidden_channels=16)
        >>> sizes = [(37, 53), (18, 26), (9, 13)]
        >>> head([torch.zeros(2, 8 << k, *size) for k, size in enumerate(sizes)]).shape
        torch.Size([2, 2, 37, 53])
    """

    @checked
    def __init__(
        self,
        in_channels: Channels,
        out_channels: int,
        *,
        hidden_channels: int = 256,
        bins: Sequence[int] = (1, 2, 3, 6),
        spatial_dims: SpatialDims = 2,
        norm: Norm = "batch",
        act: Act = "relu",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        widths = check_widths(in_channels, out_channels)
        check_positive(hidden_channels=hidden_channels)
        self.in_channels = widths
        options: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "norm": norm,
            "act": act,
            "condition_channels": condition_channels,
        }
        self.context = PyramidPooling(
            widths[-1], hidden_channels, bins, branch_channels=hidden_channels, **options
        )
        self.bins = self.context.bins
        self.laterals = nn.ModuleList(
            ConvNormAct(n, hidden_channels, kernel_size=1, **options) for n in widths[:-1]
        )
        self.smooth = nn.ModuleList(
            ConvNormAct(hidden_channels, hidden_channels, kernel_size=3, **options)
            for _ in widths[:-1]
        )
        self.fuse = JoinedProjection(
            [hidden_channels] * len(widths),
            hidden_channels,
            bias=norm is None,
            spatial_dims=spatial_dims,
            kernel_size=3,
        )
        self.fuse_norm = make_norm(norm, hidden_channels, spatial_dims)
        self.fuse_film = film_of(condition_channels, hidden_channels)
        self.fuse_act = make_act(act)
        self.drop = ChannelDropout(dropout)
        self.resize = Resize("bilinear", spatial_dims)
        self.head = Head(hidden_channels, out_channels, spatial_dims, final_activation)

    @recomputes
    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor:
        features = as_list(features)
        check_features(features, self.in_channels, self.spatial_dims)
        check_descending(features, "features")
        *finer, coarsest = entries(features, len(self.in_channels))
        condition = given_condition(coarsest, condition, self.condition_channels)
        given = keyword("condition", condition)
        levels = [self.context(coarsest, **given)]
        for x, lateral in zip(finer[::-1], list(self.laterals)[::-1], strict=True):
            y = lateral(x, **given)
            levels.insert(0, self.resize(levels[0], spatial(y)) + y)
        size = spatial(levels[0])
        fused: Any = None
        for index, smooth in enumerate(self.smooth):
            # no name for a level, which would keep it until the next one is made
            fused = self.fuse.added(
                fused, self.fuse(self.resize(smooth(levels[index], **given), size), index)
            )
        fused = self.fuse.added(fused, self.fuse(self.resize(levels[-1], size), len(self.smooth)))
        fused = modulated(self.fuse_film, recomputed(self.fuse_norm, fused), condition)
        fused = recomputed(self.fuse_act, fused)
        return self.head(self.drop(fused))


class DeepLabHead(Configured, nn.Module):
    """Decode the coarsest feature map by dilated convolutions, and sharpen it with a fine one.

    Use it on a backbone that keeps its resolution, as with `output_stride=8`. It has few parameters, and
    borders are as sharp as the fine feature map. With `fine_level=None` it is the head of DeepLabV3,
    whose output has the size of the coarsest feature map.

    Args:
        in_channels: Channels of every feature map, finest first, or a `Backbone` that makes them.
        out_channels: Channels of the output.
        hidden_channels: Channels of the hidden layers.
        dilations: Dilations of the 3x3 branches of the context, each a number or one per axis.
        fine_level: Index of the feature map that is joined to the context; None: no feature map.
        fine_channels: Channels of its projection.
        separable: Use depthwise separable 3x3 convolutions everywhere.
        align_corners: As in `F.interpolate`, for upsampling. Set it only to load weights trained with
            it.
        spatial_dims: Number of spatial axes.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: Activation after every norm.
        dropout: Channel dropout probability of the pooled context.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length of the vector on which every convolution is conditioned; None: none.

    Shape:
        list of `(B, in_channels[i], *S_i)`, finest first, or a dict of them, and a `condition`
        `(B, condition_channels)` if the head has one -> `(B, out_channels, *S)` of the fine feature
        map, or of the coarsest one

    Raises:
        ValueError: If a count is below 1, there is no such level, the list is of another length or
            order, a feature map has other channels, another rank or batch size, or the condition does
            not fit.

    Source: Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", figure 2, with one
    convolution after the join.

    Examples:
        >>> from neurenix_ms import DeepLabHead
        >>> head = DeepLabHead([8, 32], 2, hidden_channels=16, dilations=[2, 4])
        >>> head([torch.zeros(2, 8, 37, 53), torch.zeros(2, 32, 9, 13)]).shape
        torch.Size([2, 2, 37, 53])
    """

    @checked
    def __init__(
        self,
        in_channels: Channels,
        out_channels: int,
        *,
        hidden_channels: int = 256,
        dilations: Sequence[int | Sequence[int]] = (12, 24, 36),
        fine_level: int | None = 0,
        fine_channels: int = 48,
        separable: bool = True,
        align_corners: bool = False,
        spatial_dims: SpatialDims = 2,
        norm: Norm = "batch",
        act: Act = "relu",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        widths = check_widths(in_channels, out_channels)
        check_positive(hidden_channels=hidden_channels, fine_channels=fine_channels)
        if fine_level is not None:
            check_integer("fine_level", fine_level, 0, len(widths) - 1)
        self.in_channels = widths
        self.hidden_channels = hidden_channels
        self.separable = separable
        self.spatial_dims = spatial_dims
        self.norm = norm
        self.act = act
        self.condition_channels = condition_channels
        options: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "norm": norm,
            "act": act,
            "condition_channels": condition_channels,
        }
        self.context = AtrousPyramidPooling(
            widths[-1], hidden_channels, dilations, separable=separable, dropout=dropout, **options
        )
        self.dilations = self.context.dilations
        self.refine = self._wide(hidden_channels)
        self.fine: nn.Module | None = None
        self.join: nn.Module | None = None
        if fine_level is not None:
            self.fine = ConvNormAct(widths[fine_level], fine_channels, kernel_size=1, **options)
            self.join = self._wide(hidden_channels + fine_channels)
        self.resize = Resize("bilinear", spatial_dims, align_corners)
        self.head = Head(hidden_channels, out_channels, spatial_dims, final_activation)

    @recomputes
    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor:
        features = as_list(features)
        check_features(features, self.in_channels, self.spatial_dims)
        check_descending(features, "features")
        features = entries(features, len(self.in_channels))
        condition = given_condition(features[-1], condition, self.condition_channels)
        given = keyword("condition", condition)
        y = self.refine(self.context(features[-1], **given), **given)
        if self.fine is not None and self.join is not None and self.fine_level is not None:
            fine = self.fine(features[self.fine_level], **given)
            y = self.join(torch.cat([self.resize(y, spatial(fine)), fine], dim=1), **given)
        return self.head(y)

    def _wide(self, in_channels: int) -> Branch:
        conv = DilatedConvolution(
            in_channels,
            self.hidden_channels,
            (1,) * self.spatial_dims,
            separable=self.separable,
            bias=self.norm is None,
            spatial_dims=self.spatial_dims,
        )
        norm = make_norm(self.norm, self.hidden_channels, self.spatial_dims)
        film = film_of(self.condition_channels, self.hidden_channels)
        return Branch(conv, norm, self.act, film)
