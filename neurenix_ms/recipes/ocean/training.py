"""Train a U-Net on drifting densities, with resumption."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.recipes.ocean.models import PATCH, Unrolled
from neurenix_ms.training import MassConservationLoss, RegressionTask

BATCH_SIZE = 8
LEARNING_RATE = 3e-3
GRADIENT_CLIP = 1.0
NUM_MIRRORS = 8
Sample = dict[str, Tensor]
Maps = Callable[[Sample], tuple[Tensor, Tensor]]


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
        maps_of: Returns densities and fields of a sample.

    Shape:
        An item is the input `(1 + F * unroll, N, N)`, density and F fields per step, and the densities
        after it `(unroll, N, N)`.
    """

    def __init__(self, samples: Sequence[Sample], unroll: int = 1, maps_of: Maps = maps_of) -> None:
        self.maps = [maps_of(sample) for sample in samples]
        self.unroll = unroll
        self.per_sample = len(self.maps[0][1]) - unroll + 1
        self.num_windows = self.per_sample * len(self.maps)

    def __len__(self) -> int:
        return NUM_MIRRORS * self.num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        way, window = divmod(index, self.num_windows)
        which, start = divmod(window, self.per_sample)
        density, fields = self.maps[which]
        density = density[start : start + self.unroll + 1]
        fields = fields[start : start + self.unroll]
        generator = torch.Generator().manual_seed(index)
        shift = torch.randint(density.shape[-1], (2,), generator=generator).tolist()
        density, fields = turned(density.roll(shift, (-2, -1)), fields.roll(shift, (-2, -1)), way)
        return torch.cat([density[:1], fields.flatten(0, 1)]), density[1:]


def turned(density: Tensor, fields: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Mirror densities and fields along both axes and transpose them, by the three bits of `way`.

    Every two fields are a vector; an odd one at the end is a scalar.

    Shape:
        `(..., N, N)` and `(..., F, N, N)` -> the same
    """
    count = fields.shape[-3]
    vectors = count - count % 2
    for axis in (0, 1):
        if way >> axis & 1:
            sign = torch.ones(count).to(fields)
            sign[axis:vectors:2] = -1
            density = density.flip(axis - 2)
            fields = fields.flip(axis - 2) * sign[:, None, None]
    if way & 4:
        order = [i ^ 1 if i < vectors else i for i in range(count)]
        density, fields = density.mT, fields.mT[..., order, :, :]
    return density, fields


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
    model: nn.Module,
    samples: Sequence[Sample],
    epochs: int,
    folder: Path,
    *,
    mass: float = 0.0,
    unroll: int = 1,
    seed: int = 0,
    progress: bool = True,
    maps_of: Maps = maps_of,
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
        maps_of: Returns densities and fields of a sample.

    Returns:
        Wall time and CPU time in seconds.
    """
    windows = DriftWindows(samples, unroll, maps_of)
    num_fields = windows.maps[0][1].shape[1]
    sampler = EveryGeometryOnce(windows.num_windows, seed, NUM_MIRRORS)
    loader = DataLoader(windows, BATCH_SIZE, sampler=sampler)
    task = RegressionTask(
        Unrolled(model, num_fields),
        DriftLoss(mass),
        learning_rate=LEARNING_RATE,
        schedule="one_cycle",
    )
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)
