"""MSNet for conduction, which predicts the deviation of the potential from the linear field."""

import torch
from torch import Tensor, nn

from neurenix_ms.msnet import MSNet
from neurenix_ms.recipes.demo.models import linear_field

CELLS_PER_UNIT = 4.0  # brings distances, and deviations in drops per cell, to the order of 1


def network_inputs(pores: Tensor, distance: Tensor) -> Tensor:
    """Return the input of the network: pore mask, distance to the solid, and proximity to end faces.

    The proximity is -1 at the first face and 1 at the last, and decays within some cells. So the input
    far from both faces is the same in boxes of all sizes.

    Shape:
        twice `(B, 1, *S)` -> `(B, 3, *S)`
    """
    centers = torch.arange(pores.shape[2]).to(pores) + 0.5
    faces = torch.exp((centers - pores.shape[2]) / CELLS_PER_UNIT)
    faces = (faces - faces.flip(0)).view(-1, *[1] * (pores.ndim - 3)).expand_as(pores)
    return torch.cat([pores, distance / CELLS_PER_UNIT, faces], dim=1)


def levelled(potential: Tensor, pores: Tensor) -> Tensor:
    """Add a constant to the potential of every layer, so that the flux through all layers is the same.

    Flux is conserved between layers. Of all constants, these bring the potential closest to the
    solution, measured by the energy of the difference; with them the potential of the end faces, half
    a cell beyond the outermost layers, is -0.5 and 0.5.

    Args:
        potential: Approximate potential; its values in solid have no effect.
        pores: 1 in pores, 0 in solid. Without any path, the potential is returned unchanged.

    Shape:
        twice `(B, 1, *S)` -> `(B, 1, *S)`, 0 in solid
    """
    low, high = pores[:, :, :-1], pores[:, :, 1:]
    inner = (potential[:, :, 1:] - potential[:, :, :-1]) * low * high
    first = 2 * (potential[:, :, :1] + 0.5) * pores[:, :, :1]
    last = 2 * (0.5 - potential[:, :, -1:]) * pores[:, :, -1:]
    flux = torch.cat([first, inner, last], dim=2).flatten(3).sum(3)
    faces = torch.cat([2 * pores[:, :, :1], low * high, 2 * pores[:, :, -1:]], dim=2)
    faces = faces.flatten(3).sum(3)
    faces_or_one = faces.clamp(min=1)
    # the constants are 0 on both end faces, so the steps between layers sum to 0
    same = (flux / faces_or_one).sum(2, keepdim=True) / (1 / faces_or_one).sum(2, keepdim=True)
    constants = ((same - flux) / faces_or_one).cumsum(2)[:, :, :-1]
    conducts = faces.amin(2, keepdim=True) > 0
    constants = torch.where(conducts, constants, 0)
    return (potential + constants.view(*constants.shape, *[1] * (pores.ndim - 3))) * pores


class ConductionMSNet(nn.Module):
    """MSNet that predicts the deviation of the potential from the linear field, coarse to fine.

    The unit of the deviation is the drop of the potential over four cells of an empty box, not over
    the whole box, because the deviation around a grain does not depend on the length of the box. The
    finest prediction is levelled, so that flux is conserved from layer to layer.

    Args:
        num_filters: Channels of the finest stage.
        filter_growth: Ratio of the channels of a stage to those of the next finer one.
        num_scales: Number of scales.
        level: Level the finest prediction.

    Shape:
        `(B, 3, *S)` from `network_inputs`, three axes that are multiples of `2**(num_scales - 1)`
        -> list of `num_scales` tensors `(B, 1, *S / 2**k)`, coarsest first
    """

    def __init__(
        self,
        num_filters: int = 4,
        filter_growth: int = 2,
        num_scales: int = 3,
        *,
        level: bool = True,
    ) -> None:
        super().__init__()
        self.level = level
        self.msnet = MSNet(
            num_scales,
            3,
            num_filters,
            filter_growth=filter_growth,
            mask_output=True,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        *coarse, finest = self.msnet(x.contiguous(memory_format=torch.channels_last_3d))
        if self.level:
            pores = x[:, :1]
            potential = levelled(potential_of(finest, pores), pores)
            finest = deviation_of(potential, pores)
        return [*coarse, finest]


def potential_of(deviation: Tensor, pores: Tensor) -> Tensor:
    """Return the potential for a deviation from the linear field, 0 in solid.

    Shape:
        twice `(B, 1, *S)` -> `(B, 1, *S)`
    """
    size = tuple(pores.shape[2:])
    return (linear_field(size).to(pores) + deviation * CELLS_PER_UNIT / size[0]) * pores


def deviation_of(potential: Tensor, pores: Tensor) -> Tensor:
    """Return the deviation of a potential from the linear field, the inverse of `potential_of`."""
    size = tuple(pores.shape[2:])
    return (potential - linear_field(size).to(pores)) * pores * size[0] / CELLS_PER_UNIT
