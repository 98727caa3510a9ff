"""Porous samples and an MSNet in, the trained MSNet and the seconds it took out; resumable."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.recipes.msnet.models import (
    ConductionMSNet,
    deviation_of,
    network_inputs,
    potential_of,
)
from neurenix_ms.training import MultiScaleLoss, MultiScaleTask

BATCH_SIZE = 4
LEARNING_RATE = 4e-3
GRADIENT_CLIP = 1.0
NUM_MIRRORS = 16
FLUX_WEIGHT = 0.5
CONDUCTANCE_WEIGHT = 0.5


class TurnedConduction(Dataset[tuple[Tensor, Tensor]]):
    """Every geometry sixteen times: mirrored along the flow, mirrored and turned across it.

    Mirrored along the flow, the potential changes its sign.

    Args:
        samples: Items of `PorousConduction` in 3-D, as high as they are wide.

    Shape:
        An item is the input `(3, *S)` and the target `(2, *S)`: potential and pore mask.
    """

    def __init__(self, samples: Sequence[dict[str, Tensor]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return NUM_MIRRORS * len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        way, which = divmod(index, len(self.samples))
        turned, mirrors = divmod(way, 8)
        axes = [axis for axis in (1, 2, 3) if mirrors >> (axis - 1) & 1]
        maps = (self.samples[which][key].flip(axes) for key in ("pores", "distance", "potential"))
        pores, distance, potential = (x.transpose(2, 3) if turned else x for x in maps)
        potential = -potential if 1 in axes else potential
        return network_inputs(pores[None], distance[None])[0], torch.cat([potential, pores])


class ConductionLoss(nn.Module):
    """What is wrong with the deviations of all scales, with the flux, and with the conductance.

    The field: `MultiScaleLoss` over the pores. The flux: the energy of the error, that is the
    square of its differences between neighboring pore cells, in parts of the energy of the true
    deviation; it is small only where the flux of the prediction goes where the true flux goes, in
    narrow throats as well, of which the squared error of the field sees little. The conductance:
    its relative error.

    Args:
        flux: Weight of the flux.
        conductance: Weight of the conductance.

    Shape:
        list of deviations coarsest first, potential and pore mask `(B, 2, *S)` -> `()`
    """

    def __init__(self, flux: float = FLUX_WEIGHT, conductance: float = CONDUCTANCE_WEIGHT) -> None:
        super().__init__()
        self.flux = flux
        self.conductance = conductance
        self.field = MultiScaleLoss()

    def forward(self, deviations: Sequence[Tensor], target: Tensor) -> Tensor:
        potential, pores = target[:, :1], target[:, 1:]
        deviation = deviation_of(potential, pores)
        wrong = energy(deviations[-1] - deviation, pores) / energy(deviation, pores)
        truth = effective_conductivity(potential, pores)
        predicted = effective_conductivity(potential_of(deviations[-1], pores), pores)
        off = (predicted - truth).abs() / truth
        loss = self.field(deviations, deviation, pores) + self.flux * wrong.mean()
        return loss + self.conductance * off.mean()


def energy(difference: Tensor, pores: Tensor) -> Tensor:
    """Squared differences between neighboring pore cells, and to 0 on the two end faces.

    Shape:
        twice `(B, 1, *S)` -> `(B,)`
    """
    total = 2 * (difference * pores)[:, :, [0, -1]].square().flatten(1).sum(1)
    for axis in range(2, pores.ndim):
        steps = difference.diff(dim=axis).square()
        n = pores.shape[axis] - 1
        both = pores.narrow(axis, 0, n) * pores.narrow(axis, 1, n)
        total = total + (steps * both).flatten(1).sum(1)
    return total


def train(
    model: ConductionMSNet,
    samples: Sequence[dict[str, Tensor]],
    epochs: int,
    folder: Path,
    *,
    loss: ConductionLoss | None = None,
    mirrored: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Train `model` in place, or go on from `folder/last.ckpt` if it is there.

    Args:
        model: The network.
        samples: Items of `PorousConduction`, all of one size.
        epochs: Times that every geometry is seen.
        folder: Where `last.ckpt` is written after every epoch.
        loss: What is minimized, by default `ConductionLoss()`.
        mirrored: Show the samples mirrored and turned as well.
        seed: What the order of the samples comes from.
        progress: Show a progress bar.

    Returns:
        Seconds on the wall and of the CPU.
    """
    sampler = EveryGeometryOnce(len(samples), seed, NUM_MIRRORS if mirrored else 1)
    loader = DataLoader(TurnedConduction(samples), BATCH_SIZE, sampler=sampler)
    task = MultiScaleTask(
        model, loss or ConductionLoss(), learning_rate=LEARNING_RATE, schedule="one_cycle"
    )
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)
