"""Settings and trajectories of both systems."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurenix_ms.datasets import SampleCache
from neurenix_ms.datasets.dynamics import initial_states, simulate
from neurenix_ms.recipes.chaos import DT_WAVES, chaotic_waves

Parts = dict[str, Tensor]
DT_OSCILLATOR = 0.1
HORIZON = 80  # steps of the waves: 20 units of time, about one Lyapunov time
SHIFTS = 8  # copies of the waves, shifted around the ring, which follow the same equation


@dataclass(frozen=True)
class Settings:
    """Data and training of a system.

    Args:
        title: Name in tables.
        data: Function from a folder to the trajectories "train", "validation" and "test".
        dt: Time of a step.
        step_sizes: Strides of the networks.
        hidden: Widths of the steppers.
        hidden_errors: Widths of the network that predicts the errors.
        iterations: Steps of Adam for the steppers.
        iterations_errors: Steps of Adam for the network of their errors.
        batch_size: Windows of every stride per step.
    """

    title: str
    data: Callable[[Path], Parts]
    dt: float
    step_sizes: tuple[int, ...]
    hidden: tuple[int, ...]
    hidden_errors: tuple[int, ...]
    iterations: int
    iterations_errors: int
    batch_size: int


def oscillator(folder: Path) -> Parts:
    """Solve the FitzHugh-Nagumo equations from random states, over about six periods for the test."""
    sizes = {"train": (200, 1500), "validation": (40, 2500), "test": (100, 2500)}

    def make(index: int) -> Parts:
        num_samples, num_steps = list(sizes.values())[index]
        starts = initial_states("fitzhugh_nagumo", num_samples, seed=index + 1)
        return {
            "states": simulate("fitzhugh_nagumo", starts, DT_OSCILLATOR, num_steps, progress=True)
        }

    parameters = {"dt": DT_OSCILLATOR, "parts": {k: list(v) for k, v in sizes.items()}}
    cache = SampleCache(folder, "trajectories_fitzhugh_nagumo", parameters, make, ("scipy",))
    return {name: cache[i]["states"].float() for i, name in enumerate(sizes)}


def waves(folder: Path) -> Parts:
    """Solve Kuramoto-Sivashinsky waves on a ring of circumference 22, once they are chaotic."""

    def pieces(u: Tensor) -> Tensor:
        return u.unfold(0, HORIZON + 1, 100).transpose(1, 2)

    seen = torch.stack([chaotic_waves(seed, folder) for seed in (1, 2, 3, 4)])
    shift = seen.shape[-1] // SHIFTS
    return {
        "train": torch.cat([seen.roll(shift * i, -1) for i in range(SHIFTS)]),
        "validation": pieces(chaotic_waves(11, folder)),
        "test": pieces(chaotic_waves(21, folder)),
    }


SYSTEMS = {
    "fitzhugh_nagumo": Settings(
        "FitzHugh-Nagumo",
        oscillator,
        DT_OSCILLATOR,
        (1, 2, 4, 8, 16, 32, 64, 128),
        (64, 64, 64),
        (24, 24),
        8000,
        1500,
        256,
    ),
    "kuramoto_sivashinsky": Settings(
        "Kuramoto-Sivashinsky",
        waves,
        DT_WAVES,
        (1, 2, 4, 8, 16, 32),
        (192, 192, 192),
        (64, 64),
        5000,
        2500,
        128,
    ),
}
