"""Train a U-Net on drifting densities, with resumption."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.recipes.ocean.models import PATCH, DriftUNet, Unrolled
from neurenix_ms.training import MassConservationLoss, RegressionTask

BATCH_SIZE = 8
LEARNING_RATE = 3e-3
GRADIENT_CLIP = 1.0
NUM_MIRRORS = 8


def maps_of(sample: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return density and currents of a sample in the units of the networks.

    The currents of a step are the mean of those at its beginning and its end.

    Shape:
        an item of `DriftDensity` -> `(T + 1, N, N)` in units of `PATCH`, and `(T, 2, N, N)` in km/h
    """
    velocity = sample["velocity"]
    return sample["density"] / PATCH, (velocity[:-1] + velocity[1:]) / 2


class DriftWindows(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of all windows of a few steps in all samples, in eight mirrored and transposed variants.

    Each of them is shifted around the torus, too, by an amount given by its number.

    Args:
        samples: Items of `DriftDensity`, all of one size and number of steps.
        unroll: Steps of a window.

    Shape:
        An item is the input `(1 + 2 * unroll, N, N)`, density and velocities, and the densities after
        it `(unroll, N, N)`.
    """

    def __init__(self, samples: Sequence[dict[str, Tensor]], unroll: int = 1) -> None:
        self.maps = [maps_of(sample) for sample in samples]
        self.unroll = unroll
        self.per_sample = len(self.maps[0][1]) - unroll + 1
        self.num_windows = self.per_sample * len(self.maps)

    def __len__(self) -> int:
        return NUM_MIRRORS * self.num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        way, window = divmod(index, self.num_windows)
        which, start = divmod(window, self.per_sample)
        density, velocity = self.maps[which]
        density = density[start : start + self.unroll + 1]
        velocity = velocity[start : start + self.unroll]
        generator = torch.Generator().manual_seed(index)
        shift = torch.randint(density.shape[-1], (2,), generator=generator).tolist()
        density, velocity = turned(
            density.roll(shift, (-2, -1)), velocity.roll(shift, (-2, -1)), way
        )
        return torch.cat([density[:1], velocity.flatten(0, 1)]), density[1:]


def turned(density: Tensor, velocity: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Mirror densities and velocities along both axes and transpose them, by the three bits of `way`.

    Shape:
        `(..., N, N)` and `(..., 2, N, N)` -> the same
    """
    for axis in (0, 1):
        if way >> axis & 1:
            sign = torch.ones(2).to(velocity)
            sign[axis] = -1
            density = density.flip(axis - 2)
            velocity = velocity.flip(axis - 2) * sign[:, None, None]
    if way & 4:
        density, velocity = density.mT, velocity.mT.flip(-3)
    return density, velocity


class DriftLoss(nn.Module):
    """Relative squared error of the density plus the weighted relative error of the mass.

    Args:
        mass: Weight of the relative error of the mass.

    Shape:
        twice `(B, T, N, N)` -> `()`
    """

    def __init__(self, mass: float = 0.0) -> None:
        super().__init__()
        self.mass = mass
        self.mass_error = MassConservationLoss(reduction="none")

    def forward(self, predicted: Tensor, truth: Tensor) -> Tensor:
        cells = (-2, -1)
        wrong = (predicted - truth).square().sum(cells) / truth.square().sum(cells)
        lost = self.mass_error(predicted, truth) / truth.sum(cells)
        return wrong.mean() + self.mass * lost.mean()


def train(
    model: DriftUNet,
    samples: Sequence[dict[str, Tensor]],
    epochs: int,
    folder: Path,
    *,
    mass: float = 0.0,
    unroll: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Train `model` in place, or resume from `folder/last.ckpt` if it exists.

    Args:
        model: The network.
        samples: Items of `DriftDensity`.
        epochs: Passes over all windows, each time in one of eight variants.
        folder: Folder in which `last.ckpt` is written after every epoch.
        mass: Weight of the mass error in the loss.
        unroll: Number of steps for which the network is rolled out in training.
        seed: Seed of the order of the windows.
        progress: Show a progress bar.

    Returns:
        Wall time and CPU time in seconds.
    """
    windows = DriftWindows(samples, unroll)
    sampler = EveryGeometryOnce(windows.num_windows, seed, NUM_MIRRORS)
    loader = DataLoader(windows, BATCH_SIZE, sampler=sampler)
    task = RegressionTask(
        Unrolled(model), DriftLoss(mass), learning_rate=LEARNING_RATE, schedule="one_cycle"
    )
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)
