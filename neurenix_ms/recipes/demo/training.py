"""Train the networks of the demo on porous samples, with resumption."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.recipes.demo.models import network_inputs
from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.training import RegressionTask

BATCH_SIZE = 10
LEARNING_RATE = 2e-2
MEAN_SQUARE_DEVIATION = 0.028  # of the potential from the linear field, over the pores of blobs
CONDUCTANCE_WEIGHT = 0.2


class MirroredConduction(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of every geometry in four variants: original, mirrored along the flow, across it, both.

    The potential changes its sign if mirrored along the flow.

    Args:
        samples: Items of `PorousConduction`.

    Shape:
        An item is the input `(3, *S)` and the target `(2, *S)`: potential and pore mask.
    """

    def __init__(self, samples: Sequence[dict[str, Tensor]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return 4 * len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mirror, which = divmod(index, len(self.samples))
        along, across = mirror % 2 == 1, mirror >= 2
        axes = [axis for axis, flipped in ((1, along), (-1, across)) if flipped]
        fields = (self.samples[which][key] for key in ("pores", "distance", "potential"))
        pores, distance, potential = (x.flip(axes) for x in fields)
        potential = -potential if along else potential
        return network_inputs(pores[None], distance[None])[0], torch.cat([potential, pores])


def conduction_loss(potential: Tensor, target: Tensor) -> Tensor:
    """Compute the squared error of the potential in the pores plus the relative error of conductance.

    The squared error is in units of the mean square of the deviation from the linear field. It depends
    little on narrow throats, which have few cells and large steps but determine the conductance of a
    sample. So the conductance of the predicted potential is compared as well.

    Args:
        potential: Prediction; its values in solid have no effect.
        target: True potential and pore mask.

    Shape:
        `(B, 1, *S)` and `(B, 2, *S)` -> `()`
    """
    truth, pores = target[:, :1], target[:, 1:]
    error = ((potential - truth) * pores).square().sum() / pores.sum()
    conductance = effective_conductivity(truth, pores)
    off = (effective_conductivity(potential, pores) - conductance).abs() / conductance
    return error / MEAN_SQUARE_DEVIATION + CONDUCTANCE_WEIGHT * off.mean()


def train(
    network: nn.Module,
    samples: Sequence[dict[str, Tensor]],
    epochs: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Train `network` in place, or resume from `folder/last.ckpt`; return the wall time in seconds.

    Both networks of the demo are trained with the same arguments. The time of an interrupted run is
    counted up to its last complete epoch.

    Args:
        network: Network from `(B, 3, *S)` to `(B, 1, *S)`.
        samples: Items of `PorousConduction`.
        epochs: Passes over all geometries.
        folder: Folder in which `last.ckpt` is written after every epoch.
        seed: Seed of the order of the samples.
        progress: Show a progress bar.
    """
    sampler = EveryGeometryOnce(len(samples), seed)
    loader = DataLoader(MirroredConduction(samples), BATCH_SIZE, sampler=sampler)
    task = RegressionTask(
        network, conduction_loss, learning_rate=LEARNING_RATE, schedule="one_cycle"
    )
    return fit(task, loader, epochs, folder, progress=progress)[0]
