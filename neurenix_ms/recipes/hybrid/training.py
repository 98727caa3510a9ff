"""Windows of drifting density, and training through several steps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.recipes.hybrid.models import Unrolled
from neurenix_ms.recipes.ocean.models import PATCH
from neurenix_ms.recipes.ocean.training import DriftLoss, turned
from neurenix_ms.training import RegressionTask

BATCH_SIZE = 8
LEARNING_RATE = 3e-3
GRADIENT_CLIP = 1.0
NUM_MIRRORS = 8


def images_of(sample: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the densities and the fields of a sample.

    Shape:
        an item of `DriftDensity` -> `(T + 1, N, N)` in units of `PATCH`, and `(T, FIELDS, N, N)`
    """
    velocity = sample["velocity"]
    land = sample.get("land", torch.zeros_like(velocity[0, 0]))
    sea = (1 - land).expand(len(velocity) - 1, 1, *land.shape)
    return sample["density"] / PATCH, torch.cat([velocity[:-1], velocity[1:], sea], dim=1)


class HybridWindows(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of all windows of a few steps, in eight mirrored variants, shifted around the torus.

    Args:
        samples: Items of `DriftDensity`, all of one size and number of steps.
        unroll: Steps of a window.

    Shape:
        An item is the input `(1 + FIELDS * unroll, N, N)` and the densities after it `(unroll, N, N)`.
    """

    def __init__(self, samples: Sequence[dict[str, Tensor]], unroll: int) -> None:
        self.images = [images_of(sample) for sample in samples]
        self.unroll = unroll
        self.per_sample = len(self.images[0][1]) - unroll + 1
        self.num_windows = self.per_sample * len(self.images)

    def __len__(self) -> int:
        return NUM_MIRRORS * self.num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        way, window = divmod(index, self.num_windows)
        which, start = divmod(window, self.per_sample)
        density, fields = self.images[which]
        density = density[start : start + self.unroll + 1]
        fields = fields[start : start + self.unroll]
        generator = torch.Generator().manual_seed(index)
        shift = torch.randint(density.shape[-1], (2,), generator=generator).tolist()
        density, fields = density.roll(shift, (-2, -1)), fields.roll(shift, (-2, -1))
        begin, end, sea = fields.split((2, 2, 1), dim=1)
        turned_density, begin = turned(density, begin, way)
        sea, end = turned(sea, end, way)
        fields = torch.cat([begin, end, sea], dim=1)
        return torch.cat([turned_density[:1], fields.flatten(0, 1)]), turned_density[1:]


def train(
    step: nn.Module,
    samples: Sequence[dict[str, Tensor]],
    epochs: int,
    folder: Path,
    *,
    unroll: int,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Train a step in place, or resume from `folder/last.ckpt` if it exists.

    Args:
        step: The network of a step.
        samples: Items of `DriftDensity`.
        epochs: Passes over all windows, each time in one of eight variants.
        folder: Folder in which `last.ckpt` is written after every epoch.
        unroll: Steps of a window; gradients flow through all of them.
        seed: Seed of the order of the windows.
        progress: Show a progress bar.

    Returns:
        Wall time and CPU time in seconds.
    """
    windows = HybridWindows(samples, unroll)
    sampler = EveryGeometryOnce(windows.num_windows, seed, NUM_MIRRORS)
    loader = DataLoader(windows, BATCH_SIZE, sampler=sampler)
    task = RegressionTask(
        Unrolled(step), DriftLoss(), learning_rate=LEARNING_RATE, schedule="one_cycle"
    )
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)
