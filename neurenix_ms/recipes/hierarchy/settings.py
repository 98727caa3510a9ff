"""Settings, published errors and trajectories of every dynamical system."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from neurenix_ms.datasets import SampleCache, smooth_trajectories
from neurenix_ms.datasets.dynamics import initial_states, simulate

NUM_STEPS = 5120
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2000, 100, 100
ROWS_OF_TRAINING = 1537  # 513 starts for a window of the largest stride
STEP_SIZES = [2**i for i in range(11)]


@dataclass(frozen=True)
class Settings:
    """Training settings of a system, and its published errors.

    Args:
        dt: Time of a step.
        hidden: Widths of the networks, as published.
        num_iterations: Steps of Adam.
        batch_size: Windows of every stride per step.
        published: Published mean squared errors of the finest, the best single and the coupled strides;
            None for trajectories of the user's own.
        published_noisy: Those of the coupled strides at 1 % and 2 % noise.
    """

    dt: float
    hidden: list[int]
    num_iterations: int
    batch_size: int
    published: tuple[float, float, float] | None = None
    published_noisy: tuple[float | None, float | None] = (None, None)


SETTINGS = {
    "hyperbolic": Settings(
        0.01, [128] * 3, 30_000, 320, (1.5e-3, 1.5e-6, 5.1e-8), (1.7e-6, 6.1e-6)
    ),
    "hopf": Settings(0.01, [128] * 3, 12_000, 320, (4.9e-3, 9e-4, 4.1e-5), (5.4e-5, 9e-5)),
    "cubic": Settings(0.01, [256] * 3, 5_000, 256, (3.1e-3, 2e-4, 2e-4), (6e-4, 1.6e-3)),
    "van_der_pol": Settings(0.01, [512] * 3, 7_000, 128, (0.13, 3.3e-3, 3.2e-3), (0.017, None)),
    "lorenz": Settings(5e-4, [1024] * 3, 3_000, 64, (16, 4.1, 4.1)),
}


def trajectories(system: str, dt: float, folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the trajectories "train", "validation" and "test" in double precision, from a cache.

    Args:
        system: Name of the system.
        dt: Time of a step.
        folder: Folder of the cache.
    """
    parts = {
        "train": (NUM_TRAIN, ROWS_OF_TRAINING - 1),
        "validation": (NUM_VALIDATION, NUM_STEPS),
        "test": (NUM_TEST, NUM_STEPS),
    }

    def make(index: int) -> dict[str, Tensor]:
        num_samples, num_steps = list(parts.values())[index]
        starts = initial_states(system, num_samples, seed=index + 1)
        return {"states": simulate(system, starts, dt, num_steps, progress=True)}

    parameters = {"system": system, "dt": dt, "parts": {k: list(v) for k, v in parts.items()}}
    cache = SampleCache(folder, f"trajectories_{system}", parameters, make, ("scipy",))
    return {name: cache[i]["states"] for i, name in enumerate(parts)}


def noisy(states: Tensor, noise: float, seed: int) -> Tensor:
    """Add normal noise to states, in units of the standard deviation of every component."""
    generator = torch.Generator().manual_seed(seed)
    scale = noise * states.flatten(0, 1).std(dim=0)
    return states + scale * torch.randn(states.shape, generator=generator, dtype=states.dtype)


def measured(states: Tensor, noise: float, seed: int, smooth: bool = False) -> Tensor:
    """Return states as they would be measured, in single precision: with noise, perhaps smoothed."""
    states = noisy(states, noise, seed)
    return (smooth_trajectories(states).states if smooth else states).float()
