"""MSNet for flow, which predicts the velocity along the force in units of Kozeny and Carman."""

import torch
from torch import Tensor, nn

from neurenix_ms.msnet import MSNet

NUM_FEATURES = 2


class FlowMSNet(nn.Module):
    """MSNet that predicts the velocity along the first axis of a periodic box, coarse to fine.

    Input and output have no dimension, so a medium and its enlarged copy are the same: the distance to
    the solid is divided by the hydraulic radius, and the velocity by the permeability of Kozeny and
    Carman. All convolutions are periodic. In the finest prediction the flux through all layers is equal.

    Args:
        num_filters: Channels of the finest stage.
        filter_growth: Ratio of the channels of a stage to those of the next finer one.
        num_scales: Number of scales.

    Shape:
        `(B, 2, *S)`: pore mask and distance, three axes that are multiples of `2**(num_scales - 1)`
        -> list of `num_scales` tensors `(B, 1, *S / 2**k)`, coarsest first
    """

    def __init__(self, num_filters: int = 4, filter_growth: int = 2, num_scales: int = 3) -> None:
        super().__init__()
        self.msnet = MSNet(
            num_scales,
            NUM_FEATURES,
            num_filters,
            filter_growth=filter_growth,
            padding_mode="circular",
            mask_output=True,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        *coarse, finest = self.msnet(x)
        return [*coarse, equal_flux(finest, x[:, :1])]


def equal_flux(velocity: Tensor, pores: Tensor) -> Tensor:
    """Add a constant to the pores of every layer, so that the flux through all layers is the mean flux.

    Of all fields with equal flux, whose mean is the same, this one is closest. The true field has equal
    flux because mass is conserved.

    Shape:
        twice `(B, 1, *S)` -> `(B, 1, *S)`, 0 in solid
    """
    flux = (velocity * pores).flatten(3).sum(3)
    missing = (flux.mean(2, keepdim=True) - flux) / pores.flatten(3).sum(3).clamp(min=1)
    return (velocity + missing.view(*missing.shape, *[1] * (pores.ndim - 3))) * pores


def surface(pores: Tensor) -> Tensor:
    """Return the number of faces between pores and solid per voxel of periodic boxes.

    Shape:
        `(B, *S)` -> `(B,)`
    """
    axes = range(1, pores.ndim)
    changes = torch.stack([(pores - pores.roll(1, axis)).abs() for axis in axes])
    return changes.flatten(2).mean(2).sum(0)
