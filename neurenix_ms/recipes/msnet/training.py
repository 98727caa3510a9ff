"""Train an MSNet on porous samples, with resumption."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.recipes.fitting import SeededSampler, fit
from neurenix_ms.recipes.msnet.models import (
    ConductionMSNet,
    deviation_of,
    network_inputs,
    potential_of,
)
from neurenix_ms.training import MultiScaleLoss, MultiScaleTask

BATCH_SIZE = 2  # of the smallest boxes; larger ones have as many voxels, or are alone
LEARNING_RATE = 4e-3
GRADIENT_CLIP = 1.0
NUM_MIRRORS = 16
FLUX_WEIGHT = 0.5
CONDUCTANCE_WEIGHT = 0.5


class TurnedConduction(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of every geometry in sixteen variants, mirrored along all axes and transposed.

    The potential changes its sign if mirrored along the flow. The axes across the flow are transposed.

    Args:
        samples: Items of `PorousConduction` in 3-D, with equal sizes across the flow.

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
        fields = (self.samples[which][key].flip(axes) for key in ("pores", "distance", "potential"))
        pores, distance, potential = (x.transpose(2, 3) if turned else x for x in fields)
        potential = -potential if 1 in axes else potential
        return network_inputs(pores[None], distance[None])[0], torch.cat([potential, pores])


class ConductionLoss(nn.Module):
    """Sum of the errors of the deviations at all scales, of the flux and of the conductance.

    The error of the deviations is `MultiScaleLoss` over the pores. The error of the flux is the energy
    of the difference, that is the sum of squared differences between neighboring pore cells, divided by
    the energy of the true deviation. It is small only if the predicted flux follows the true flux, also
    in narrow throats, which contribute little to the squared error of the field. The error of the
    conductance is relative.

    Args:
        flux: Weight of the error of the flux.
        conductance: Weight of the error of the conductance.

    Shape:
        list of deviations, coarsest first, and potential and pore mask `(B, 2, *S)` -> `()`
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
    """Sum the squared differences between neighboring pore cells, and to 0 on the two end faces.

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


class BatchesOfOneSize(SeededSampler[list[int]]):
    """Sampler of batches of boxes of one size, in an order and variants given by seed and epoch.

    Every box is in one batch of an epoch.

    Args:
        groups: Number of boxes of every size, and how many of them are a batch.
        seed: Seed of all epochs, not negative.
        num_mirrors: Number of variants of each in the dataset: first all originals, then all mirrored
            in one way, and so on.
    """

    def __init__(self, groups: Sequence[tuple[int, int]], seed: int, num_mirrors: int) -> None:
        super().__init__(seed)
        self.groups = groups
        self.num_mirrors = num_mirrors

    def __len__(self) -> int:
        return sum(-(-count // size) for count, size in self.groups)

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator()
        total = sum(count for count, _ in self.groups)
        batches: list[list[int]] = []
        first = 0
        for count, size in self.groups:
            order = first + torch.randperm(count, generator=generator)
            mirror = torch.randint(self.num_mirrors, order.shape, generator=generator)
            batches += [batch.tolist() for batch in (order + total * mirror).split(size)]
            first += count
        # a generator, since Lightning sets the epoch of a resumed run after it asks for the iterator
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


class Batches(Dataset[list[Tensor]]):
    """Dataset of batches of another one; an index is a list of its indices."""

    def __init__(self, items: Dataset[tuple[Tensor, Tensor]]) -> None:
        self.items = items

    def __getitem__(self, indices: list[int]) -> list[Tensor]:
        batch: list[Tensor] = default_collate([self.items[i] for i in indices])
        return batch


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
    """Train `model` in place, or resume from `folder/last.ckpt` if it exists.

    Args:
        model: The network.
        samples: Items of `PorousConduction`, one size after the other, smallest first.
        epochs: Passes over all geometries.
        folder: Folder in which `last.ckpt` is written after every epoch.
        loss: Loss to minimize, by default `ConductionLoss()`.
        mirrored: Train on mirrored and transposed samples as well.
        seed: Seed of the order of the samples.
        progress: Show a progress bar.

    Returns:
        Wall time and CPU time in seconds.
    """
    sampler = BatchesOfOneSize(_groups(samples), seed, NUM_MIRRORS if mirrored else 1)
    loader = DataLoader(Batches(TurnedConduction(samples)), batch_size=None, sampler=sampler)
    task = MultiScaleTask(
        model, loss or ConductionLoss(), learning_rate=LEARNING_RATE, schedule="one_cycle"
    )
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)


def _groups(samples: Sequence[dict[str, Tensor]]) -> list[tuple[int, int]]:
    """Return the number of samples of every size, and of those in a batch."""
    voxels = [one["pores"].numel() for one in samples]
    sizes = list(dict.fromkeys(voxels))
    return [(voxels.count(size), max(1, BATCH_SIZE * sizes[0] // size)) for size in sizes]
