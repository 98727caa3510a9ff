"""Trajectories of the user's own, in parts to train on, to select strides by, and to test on."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.scanned import checksum
from neurenix_ms.recipes.hierarchy.settings import STEP_SIZES, Settings

UNSEEN = 0.1  # part of the trajectories that each of validation and test has
LEAST_STEPS = 4  # time steps in each part


class OwnTrajectories:
    """The trajectories of a file, in three parts; of a single one, the parts follow each other in time.

    Args:
        array: Trajectories `(N, T, D)`, or a single one `(T, D)`, at equal time steps.
        dt: Time of a step.

    Raises:
        ValueError: If the file has other axes, or too few trajectories or time steps.
    """

    def __init__(self, array: DiskArray, dt: float) -> None:
        self.settings = Settings(dt, [128] * 3, 12_000, 320)
        self.name = array.path.name
        states = torch.from_numpy(np.array(array[...], "float64"))
        if states.ndim not in (2, 3):
            raise ValueError(
                f"{array.path} must have the axes (trajectories, time, features), or (time, features) "
                f"of a single trajectory, got shape {array.shape}"
            )
        axis = 0 if states.ndim == 3 and len(states) > 1 else 1
        states = states if states.ndim == 3 else states[None]
        unseen = max(1 if axis == 0 else LEAST_STEPS, round(UNSEEN * states.shape[axis]))
        sizes = [states.shape[axis] - 2 * unseen, unseen, unseen]
        if sizes[0] < 1 or states.shape[1] < LEAST_STEPS:
            raise ValueError(
                f"{array.path} must have three trajectories or more of {LEAST_STEPS} time steps, or a "
                f"single one of {3 * LEAST_STEPS}, got shape {array.shape}"
            )
        parts = states.split(sizes, axis)
        self.parts: dict[str, Tensor] = dict(
            zip(("train", "validation", "test"), parts, strict=True)
        )
        self.digest = checksum(array)
        longest = min(part.shape[1] for part in parts) // 2
        self.step_sizes = [size for size in STEP_SIZES if size <= longest]

    def facts(self) -> dict[str, Any]:
        """Return what a result depends on, besides the options."""
        return {"data": self.digest, "dt": self.settings.dt}


def of_curve(num_steps: int) -> int:
    """Return how many steps a point of a curve takes the mean of, so that there are 128 at most.

    Examples:
        >>> of_curve(5120), of_curve(99)
        (40, 1)
    """
    return math.ceil(num_steps / 128)
