"""The two networks of the demo, which predict the potential at several scales or at one."""

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
    """Return the potential of a box without solid, rising along the first spatial axis.

    Shape:
        sizes S -> `(1, 1, *S)`
    """
    num_cells = size[0]
    ramp = (torch.arange(num_cells) + 0.5) / num_cells - 0.5
    return ramp.view(1, 1, -1, *(1,) * (len(size) - 1)).expand(1, 1, *size)


def network_inputs(pores: Tensor, distance: Tensor) -> Tensor:
    """Return the input of both networks: pore mask, distance to the solid, linear field.

    Shape:
        twice `(B, 1, *S)` -> `(B, 3, *S)`
    """
    linear = linear_field(tuple(pores.shape[2:])).to(pores).expand_as(pores)
    return torch.cat([pores, distance / CELLS_PER_UNIT, linear], dim=1)


class Potential(nn.Module):
    """Sum of the linear field and the deviation that a network predicts.

    The deviation is multiplied by a parabola that is 0 on the two end faces, so that the potential
    is exactly -0.5 and 0.5 there, whatever the network returns.

    Args:
        network: Network from three channels to one.

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
    """Network of features at several resolutions with global context, fused by attention.

    `PyramidNetwork` encodes, `PyramidPooling` adds the context of the whole box to the coarsest
    features, `FeatureFusion` fuses the scales with attention weights, and a convolution and a head
    compute the output.

    Args:
        in_channels: Channels of the input.
        base_channels: Channels of the finest resolution, doubled at every coarser one.
        num_levels: Number of resolutions.
        width: Channels of the fused and of the pooled features.

    Shape:
        `(B, in_channels, *S)` -> `(B, 1, *S)`
    """

    def __init__(
        self, in_channels: int = 3, base_channels: int = 8, num_levels: int = 4, width: int = 16
    ) -> None:
        super().__init__()
        # only its encoder is used, so its top-down path gets a single channel (134 parameters)
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
    """Return the multiscale network for the potential."""
    return Potential(MultiScaleNetwork())


def single_scale() -> Potential:
    """Return a plain stack of convolutions at full resolution for the potential."""
    width = SINGLE_SCALE_WIDTH
    widths = [3] + [width] * SINGLE_SCALE_LAYERS
    layers = [ConvNormAct(a, b) for a, b in pairwise(widths)]
    return Potential(nn.Sequential(*layers, nn.Conv2d(width, 1, 1)))
