"""Checks, projection and reduction of lists of feature maps."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from neurenix_ms._core.checks import check_integers, shown
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.orders import check_descending, check_halving
from neurenix_ms._core.sizes import Target, spatial, target_size
from neurenix_ms._core.tracing import entries, one_call, sizes_are_open
from neurenix_ms.backbones import Backbone
from neurenix_ms.layers.resize import Resize

Channels = Sequence[int] | Backbone
Features = Sequence[Tensor] | Mapping[str, Tensor]


def channels_of(source: Channels) -> list[int]:
    """Return the channels of every feature map, as given or as measured by a backbone."""
    return list(source.channels if isinstance(source, Backbone) else source)


def as_list(features: Features) -> Sequence[Tensor]:
    """Return feature maps as a list, from a list or a dict (as torchvision's networks return)."""
    if type(features) is list:
        return features
    if isinstance(features, Mapping):
        return list(features.values())
    if isinstance(features, Tensor) or not isinstance(features, (list, tuple, Proxy)):
        raise ValueError(f"features must be a list or a dict of tensors, got {shown(features)}")
    return features


@one_call
def check_features(features: Sequence[Tensor], channels: Sequence[int], spatial_dims: int) -> None:
    """Raise if the length of the list, or a rank, number of channels or batch size is wrong."""
    if len(features) != len(channels):
        raise ValueError(f"expected {len(channels)} features, got {len(features)}")
    known = not sizes_are_open()
    batch = -1
    for index, (x, wanted) in enumerate(zip(features, channels, strict=True)):
        if known and type(x) is Tensor and len(shape := x.shape) == spatial_dims + 2:
            batch = batch if index else shape[0]
            if shape[0] == batch and shape[1] == wanted:
                continue  # the usual case, in few calls
        check_rank(x, spatial_dims)
        check_channels(x, wanted, f"feature {index}")
        if x.shape[0] != features[0].shape[0]:
            raise ValueError(
                f"all features must have one batch size, got {features[0].shape[0]} in feature 0 "
                f"and {x.shape[0]} in feature {index}"
            )


def check_widths(source: Channels, out_channels: int) -> list[int]:
    """Return the channels as a list, or raise if it is empty or a number of channels is below 1."""
    in_channels = channels_of(source)
    if not in_channels:
        raise ValueError("in_channels must name at least one feature, got an empty list")
    check_positive(**{f"in_channels[{i}]": n for i, n in enumerate(in_channels)})
    check_positive(out_channels=out_channels)
    return in_channels


class Projections(nn.Module):
    """Project every feature map to the same number of channels, then resize all to one size.

    Shape:
        list of K `(B, C_i, *S_i)` -> list of K `(B, C, *T)`
    """

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
        features = entries(features, len(self.points))
        size = target_size([spatial(x) for x in features], self.target)
        projected = zip(self.points, features, strict=True)
        return [self.resize(point(x), size) for point, x in projected]


def add(maps: Sequence[Tensor]) -> Tensor:
    """Return the sum of all feature maps."""
    return (
        reduce(lambda total, y: total.add_(y), maps[2:], maps[0] + maps[1])
        if len(maps) > 1
        else maps[0]
    )


def weighted(weights: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of all feature maps, without keeping the products in memory."""
    total = weights[0] * maps[0]
    for weight, y in zip(weights[1:], maps[1:], strict=True):
        total.addcmul_(weight, y)
    return total


def average(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean of all feature maps."""
    return add(maps) / len(maps)


def greatest(maps: Sequence[Tensor]) -> Tensor:
    """Return the elementwise maximum of all feature maps."""
    return reduce(torch.maximum, maps)


def check_encoder(encoder_channels: Channels, stride: Any) -> list[int]:
    """Return the channels of an encoder's feature maps for a decoder; raise unless it has several."""
    widths = check_integers("encoder_channels", channels_of(encoder_channels), minimum=1)
    if isinstance(encoder_channels, Backbone) and stride == 2:
        encoder_channels.check_doubling()
    if len(widths) < 2:
        raise ValueError(f"encoder_channels must have at least two entries, got {widths}")
    return widths


def check_encoded(
    features: Features, channels: Sequence[int], spatial_dims: SpatialDims, stride: Any
) -> Sequence[Tensor]:
    """Return the feature maps of an encoder as a list; raise unless a decoder of this stride fits."""
    maps = as_list(features)
    check_features(maps, channels, spatial_dims)
    check = check_halving if stride == 2 else check_descending
    check(maps, "features")
    return maps
