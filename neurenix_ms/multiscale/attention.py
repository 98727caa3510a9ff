"""Fusion of feature maps by attention weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims, check_positive, choose
from neurenix_ms._core.sizes import Target, check_target
from neurenix_ms._core.tracing import entries
from neurenix_ms.layers.blocks import modulated
from neurenix_ms.layers.conditioning import film_of, given_condition
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    Projections,
    add,
    as_list,
    check_features,
    check_widths,
    weighted,
)

AttentionKind = Literal["channel", "spatial", "both"]


class AttentionFusion(Configured, nn.Module):
    """Fuse feature maps in a weighted sum whose weights depend on the input.

    The weights are computed per channel, per pixel or both, and sum to 1 over the feature maps. Use the
    module where the input decides which scale matters. Before training it returns the mean of the
    projected feature maps.

    Args:
        in_channels: Channels of every feature map, or a `Backbone` that returns them.
        out_channels: Channels of the result; a feature map with another number of channels is projected
            by a 1x1 convolution.
        spatial_dims: Number of spatial axes.
        attention: "channel" computes the weights from the global mean (not tileable), "spatial" from
            the surroundings of a pixel, "both" adds the scores of the two.
        reduction: Divisor of `out_channels` that gives the width of the hidden layer.
        min_hidden: Smallest width of the hidden layer.
        target: Size of the result: "largest", "smallest", the index of a feature map, or a size.
        mode: Interpolation.
        align_corners: As in `F.interpolate`.
        condition_channels: Length of the vector on which the result is conditioned, as blocks in `UNet`.

    Shape:
        list of K `(B, in_channels[i], *S_i)`, or a dict of them, and a `condition`
        `(B, condition_channels)` if the module has one -> `(B, out_channels, *T)`

    Raises:
        ValueError: If a name is unknown, the list is empty or has the wrong length, or a feature map has
            the wrong rank, number of channels or batch size, or the condition does not fit.

    Source: "channel" Li et al. 2019, "Selective Kernel Networks", equations 1 to 6; "spatial" Chen et
    al. 2016, "Attention to Scale", equations 1 and 2.

    Examples:
        >>> import torch
        >>> from neurenix_ms import AttentionFusion
        >>> fuse = AttentionFusion([8, 16], 8)
        >>> features = [torch.zeros(1, 8, 13, 9), torch.zeros(1, 16, 6, 4)]
        >>> fuse(features).shape, fuse.attention_weights(features).shape
        (torch.Size([1, 8, 13, 9]), torch.Size([1, 2, 8, 1, 1]))
    """

    @checked
    def __init__(
        self,
        in_channels: Channels,
        out_channels: int,
        *,
        spatial_dims: SpatialDims = 2,
        attention: AttentionKind = "channel",
        reduction: int = 16,
        min_hidden: int = 32,
        target: Target = "largest",
        mode: str = "bilinear",
        align_corners: bool = False,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_widths(in_channels, out_channels)
        check_positive(reduction=reduction, min_hidden=min_hidden)
        if attention not in ("channel", "spatial", "both"):
            raise ValueError(
                f"attention must be one of ['channel', 'spatial', 'both'], got {attention!r}"
            )
        self.target = check_target(target, spatial_dims)
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
        self.film = film_of(condition_channels, out_channels)

    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor:
        features = as_list(features)
        check_features(features, self.in_channels, self.spatial_dims)
        condition = given_condition(features[-1], condition, self.condition_channels)
        maps = self.project(features)
        fused = weighted(entries(self._weights(maps).unbind(dim=1), len(maps)), maps)
        return modulated(self.film, fused, condition)

    def attention_weights(self, features: Features) -> Tensor:
        """Return the weights of K feature maps: `(B, K, C, 1..)`, `(B, K, 1, *T)` or `(B, K, C, *T)`."""
        features = as_list(features)
        check_features(features, self.in_channels, self.spatial_dims)
        return self._weights(self.project(features))

    def _weights(self, maps: Sequence[Tensor]) -> Tensor:
        scores: list[Tensor] = []
        if self.channel_scores is not None:
            axes = tuple(range(2, 2 + self.spatial_dims))
            means = add(maps).mean(axes, keepdim=True)
            scores.append(self.channel_scores(means).unflatten(1, (len(maps), -1)))
        if self.spatial_scores is not None:
            scores.append(self.spatial_scores(torch.cat(list(maps), dim=1)).unsqueeze(2))
        return torch.softmax(add(scores), dim=1)


def start_at_zero(scores: nn.Sequential) -> None:
    """Set the last layer to zero, so that all weights are equal at the start of training."""
    for parameter in scores[-1].parameters():
        nn.init.zeros_(parameter)
