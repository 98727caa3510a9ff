"""Merge a feature map with the coarser one of a pyramid."""

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms.layers.resize import enlarged
from neurenix_ms.multiscale.slots import Slots


def merge_of(
    slots: Slots | None, channels: int, width: int, spatial_dims: SpatialDims
) -> nn.Module:
    """Return what merges a feature map with the coarser one of `width` channels.

    Args:
        slots: Those of the level; None for the coarsest.
        channels: Channels of the feature map.
        width: Channels of the coarser one, and of the result.
        spatial_dims: Number of spatial axes.
    """
    conv = CONVOLUTIONS[spatial_dims]
    lateral = conv(channels, width, 1)
    if slots is None:
        return Merge(lateral)
    if slots.up == "nearest" and slots.skip == "sum" and set(slots.stride) == {2}:
        return Merge(lateral)
    up, wide = slots.make_up(width, width)
    skip, joined = slots.make_skip(width, wide)
    project = nn.Identity() if joined == width else conv(joined, width, 1)
    return SlottedMerge(lateral, up, skip, project)


class Merge(nn.Module):
    """A feature map through a 1x1 convolution, plus the coarser one, every pixel of it twice per axis.

    Shape:
        `(B, C, *S)` and `(B, P, *S / 2)` -> `(B, P, *S)`
    """

    def __init__(self, lateral: nn.Module) -> None:
        super().__init__()
        self.lateral = lateral

    def forward(self, features: Tensor, coarse: Tensor | None = None) -> Tensor:
        y = self.lateral(features)
        # added into the upsampled feature map, which nothing else reads
        return y if coarse is None else enlarged(coarse, spatial(y)).add_(y)


class SlottedMerge(nn.Module):
    """A feature map through a 1x1 convolution, merged with the coarser one as chosen.

    Shape:
        `(B, C, *S)` and `(B, P, *S / stride)` -> `(B, P, *S)`
    """

    def __init__(
        self, lateral: nn.Module, up: nn.Module, skip: nn.Module | None, project: nn.Module
    ) -> None:
        super().__init__()
        self.lateral = lateral
        self.up = up
        self.skip = skip
        self.project = project

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        y = self.lateral(features)
        upsampled = fit(self.up(coarse), spatial(y))
        merged = torch.cat([y, upsampled], dim=1) if self.skip is None else self.skip(y, upsampled)
        return self.project(merged)
