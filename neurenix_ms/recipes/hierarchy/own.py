"""Trajectories of the user's own, and the settings of networks for them."""

import math
from typing import Any

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.recipes.hierarchy.settings import STEP_SIZES, Settings
from neurenix_ms.recipes.own import OwnTrajectories


class OwnSystem(OwnTrajectories):
    """The trajectories of a file, and the settings of networks for them; see `OwnTrajectories`.

    Args:
        array: Trajectories `(N, T, D)`, or a single one `(T, D)`, at equal time steps.
        dt: Time of a step.
    """

    def __init__(self, array: DiskArray, dt: float) -> None:
        super().__init__(array)
        self.settings = Settings(dt, [128] * 3, 12_000, 320)
        self.step_sizes = self.strides(STEP_SIZES)

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
