"""The two networks of the demo: pores in, potential out, composed of scales or of one scale only."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.multiscale import FeatureFusion, PyramidNetwork, PyramidPooling

# chosen so that both networks have the same number of parameters within 2 %
SINGLE_SCALE_WIDTH = 24
SINGLE_SCALE_LAYERS = 9
CELLS_PER_UNIT = 10.0  # brings the distances in pores to the order of 1


def linear_field(size: tuple[int, ...]) -> Tensor:
    """Potential of a box without solid, rising along the first spatial axis: `(1, 1, *S)`."""
    num_cells = size[0]
    ramp = (torch.arange(num_cells) + 0.5) / num_cells - 0.5
    return ramp.view(1, 1, -1, *(1,) * (len(size) - 1)).expand(1, 1, *size)


def network_inputs(pores: Tensor, distance: Tensor) -> Tensor:
    """What both networks see: pore mask, distance to the solid, linear field.

    Shape:
        twice `(B, 1, *S)` -> `(B, 3, *S)`
    """
    linear = linear_field(tuple(pores.shape[2:])).to(pores).expand_as(pores)
    return torch.cat([pores, distance / CELLS_PER_UNIT, linear], dim=1)


class Potential(nn.Module):
    """The linear field plus what a network says about the deviation from it.

    The deviation is multiplied by a parabola that is 0 on the two end faces, so that the potential
    is exactly -0.5 and 0.5 there whatever the network says.

    Args:
        network: Three maps in, one map out.

    Shape:
        `(B, 3, *S)` from `network_inputs` -> `(B, 1, *S)`
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        linear = x[:, 2:3]
        return linear + (1 - 4 * linear**2) * self.network(x)


class MultiScaleNetwork(nn.Module):
    """Features at several resolutions, the whole box in the coarsest, all weighed into one map.

    `PyramidNetwork` encodes, `PyramidPooling` adds what the coarsest map looks like from afar,
    `FeatureFusion` weighs the scales by what they contain, and a convolution with a head reads the
    result.

    Args:
        in_channels: Channels of the input.
        base_channels: Width of the finest resolution; every coarser one doubles it.
        num_levels: Number of resolutions.
        width: Channels of the fused map and of the pooled one.

    Shape:
        `(B, in_channels, *S)` -> `(B, 1, *S)`
    """

    def __init__(
        self, in_channels: int = 3, base_channels: int = 8, num_levels: int = 4, width: int = 16
    ) -> None:
        super().__init__()
        # only what it encodes is used, so its own way down gets a single channel (134 values)
        self.pyramid = PyramidNetwork(
            in_channels,
            1,
            num_levels,
            base_channels,
            pyramid_channels=1,
            block="single",
            remember=False,
        )
        *finer, coarsest = self.pyramid.feature_channels
        self.context = PyramidPooling(coarsest, width, (1, 2, 4), branch_channels=4)
        self.fusion = FeatureFusion([*finer, width], width, "attention")
        self.head = nn.Sequential(ConvNormAct(width, width), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        *finer, coarsest = self.pyramid.forward_features(x)
        return self.head(self.fusion([*finer, self.context(coarsest)]))


def multiscale() -> Potential:
    """The potential from several scales."""
    return Potential(MultiScaleNetwork())


def single_scale() -> Potential:
    """The potential from a plain stack of convolutions at full resolution."""
    width = SINGLE_SCALE_WIDTH
    widths = [3] + [width] * SINGLE_SCALE_LAYERS
    layers = [ConvNormAct(a, b) for a, b in pairwise(widths)]
    return Potential(nn.Sequential(*layers, nn.Conv2d(width, 1, 1)))
