"""Settings and trajectories of both systems, and of one of the user's own."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurenix_ms.datasets import SampleCache
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.dynamics import initial_states, simulate
from neurenix_ms.recipes.chaos import DT_WAVES, chaotic_waves
from neurenix_ms.recipes.own import OwnTrajectories

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
        unit: Unit of the mean squared changes that the published rule compares.
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
    unit: float = 1.0


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


def own_system(array: DiskArray, options: argparse.Namespace) -> tuple[str, Settings]:
    """Return a name and the settings of the system whose trajectories a file holds.

    Args:
        array: Trajectories `(N, T, D)` at equal time steps, or a single one `(T, D)`.
        options: The command line, with the time of a step.

    Raises:
        ValueError: If the file is not usable.
    """
    own = OwnTrajectories(array)
    parts = {name: part.float() for name, part in own.parts.items()}
    settings = Settings(
        own.name,
        lambda _: parts,
        options.dt,
        tuple(own.strides(2**i for i in range(8))),
        (128, 128, 128),
        (32, 32),
        8000,
        1500,
        256,
        unit=float(own.parts["train"].flatten(0, 1).var(dim=0).mean()),
    )
    return f"{own.name}_{own.digest[:8]}_{options.dt:g}", settings


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
