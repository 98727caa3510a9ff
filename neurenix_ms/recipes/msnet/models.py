"""Pores in, potential out: an MSNet that predicts how far the potential is from the linear field."""

import torch
from torch import Tensor, nn

from neurenix_ms.msnet import MSNet
from neurenix_ms.recipes.demo.models import linear_field

CELLS_PER_UNIT = 4.0  # brings distances, and deviations in drops per cell, to the order of 1


def network_inputs(pores: Tensor, distance: Tensor) -> Tensor:
    """What the network sees: pore mask, distance to the solid, and where the end faces are.

    The last is -1 at the first face and 1 at the last, and fades within some cells: what lies far
    from both looks the same in boxes of all sizes.

    Shape:
        twice `(B, 1, *S)` -> `(B, 3, *S)`
    """
    centers = torch.arange(pores.shape[2]).to(pores) + 0.5
    faces = torch.exp((centers - pores.shape[2]) / CELLS_PER_UNIT)
    faces = (faces - faces.flip(0)).view(-1, *[1] * (pores.ndim - 3)).expand_as(pores)
    return torch.cat([pores, distance / CELLS_PER_UNIT, faces], dim=1)


def levelled(potential: Tensor, pores: Tensor) -> Tensor:
    """The potential with a constant added to every layer, so that all layers pass the same flux.

    What flows into a layer must flow out of it. Of all constants, these are the ones that bring
    the potential closest to the solution, measured by the energy of the difference; they also take
    the end faces, half a cell beyond the outermost layers, to -0.5 and 0.5.

    Args:
        potential: A guess; what it is in solid does not matter.
        pores: 1 in pores, 0 in solid; without any path, the guess is returned as it is.

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
    ease = faces.clamp(min=1)
    # the constants are 0 on both end faces: the steps between them add up to nothing
    same = (flux / ease).sum(2, keepdim=True) / (1 / ease).sum(2, keepdim=True)
    constants = ((same - flux) / ease).cumsum(2)[:, :, :-1]
    conducts = faces.amin(2, keepdim=True) > 0
    constants = torch.where(conducts, constants, 0)
    return (potential + constants.view(*constants.shape, *[1] * (pores.ndim - 3))) * pores


class ConductionMSNet(nn.Module):
    """The deviation of the potential from the linear field, coarse to fine.

    It is given in drops of the potential over four cells of an empty box, not over the box: how far
    a grain bends the field around it does not depend on how long the box is. The finest one is
    levelled, so flux is neither lost nor made from layer to layer.

    Args:
        num_filters: Width of the finest stage.
        filter_growth: Factor of the width from a stage to the next coarser one.
        num_scales: Number of scales.
        level: Level the finest prediction.

    Shape:
        `(B, 3, *S)` from `network_inputs`, three axes that are multiples of `2**(num_scales - 1)`
        -> list of `num_scales` maps `(B, 1, *S / 2**k)`, coarsest first
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
    """The potential of a deviation from the linear field; 0 in solid.

    Shape:
        twice `(B, 1, *S)` -> `(B, 1, *S)`
    """
    size = tuple(pores.shape[2:])
    return (linear_field(size).to(pores) + deviation * CELLS_PER_UNIT / size[0]) * pores


def deviation_of(potential: Tensor, pores: Tensor) -> Tensor:
    """The inverse of `potential_of`."""
    size = tuple(pores.shape[2:])
    return (potential - linear_field(size).to(pores)) * pores * size[0] / CELLS_PER_UNIT
