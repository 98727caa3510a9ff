"""Arrays of the user's own: their values, and trajectories in parts to train, choose and test on."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.scanned import checksum

UNSEEN = 0.1  # part of the trajectories that each of validation and test has


def values_of(array: DiskArray) -> Tensor:
    """Return all values of a file in double precision.

    Raises:
        ValueError: If values are missing, infinite, or complex.
    """
    check_real(array)
    values = np.array(array[...], "float64")
    check_finite_values(array, values)
    return torch.from_numpy(values)


def check_real(array: DiskArray) -> None:
    """Raise unless the numbers of a file are real."""
    if array.dtype.kind == "c":
        raise ValueError(f"{array.path} must have real numbers, got type {array.dtype}")


def check_finite_values(
    array: DiskArray, values: np.ndarray, corner: Iterable[int] | None = None
) -> None:
    """Raise with number and place if values of a file are infinite.

    Args:
        array: The file.
        values: A slice of it.
        corner: Place of the first value of the slice in the file; by default its beginning.
    """
    infinite = np.isinf(values)
    if infinite.any():
        first = np.argwhere(infinite)[0].tolist()
        start = [0] * len(first) if corner is None else corner
        place = tuple(a + b for a, b in zip(start, first, strict=True))
        raise ValueError(
            f"{array.path} must have finite values, got {int(infinite.sum())} infinite values of "
            f"{values.size} in this slice, the first at {place}"
        )


class OwnTrajectories:
    """The trajectories of a file, in three parts; of a single one, the parts follow each other in time.

    A tenth of the trajectories, or of the time steps of a single one, is for each of validation and
    test, the last ones for the test.

    Args:
        array: Trajectories `(N, T, D)`, or a single one `(T, D)`, at equal time steps.
        least_steps: Time steps that each part must have.
        last_axis: What the last axis holds.

    Raises:
        ValueError: If the file has other axes, too few trajectories or time steps, one value everywhere
            in the part to train on, or values that are missing, infinite or complex.
    """

    def __init__(self, array: DiskArray, least_steps: int = 4, last_axis: str = "features") -> None:
        self.name = array.path.name
        states = values_of(array)
        if states.ndim not in (2, 3):
            raise ValueError(
                f"{array.path} must have the axes (trajectories, time, {last_axis}), or (time, "
                f"{last_axis}) of a single trajectory, got shape {array.shape}"
            )
        axis = 0 if states.ndim == 3 and len(states) > 1 else 1
        states = states if states.ndim == 3 else states[None]
        least = 1 if axis == 0 else least_steps
        unseen = max(least, round(UNSEEN * states.shape[axis]))
        sizes = [states.shape[axis] - 2 * unseen, unseen, unseen]
        if sizes[0] < least or states.shape[1] < least_steps or not states.numel():
            raise ValueError(
                f"{array.path} must have three trajectories or more of {least_steps} time steps, or a "
                f"single one of {3 * least_steps}, got shape {array.shape}"
            )
        parts = states.split(sizes, axis)
        self.parts: dict[str, Tensor] = dict(
            zip(("train", "validation", "test"), parts, strict=True)
        )
        seen = self.parts["train"]
        if seen.min() == seen.max():
            raise ValueError(
                f"{array.path} must have different values, got {seen.max():g} everywhere"
            )
        self.digest = checksum(array)

    @property
    def shortest(self) -> int:
        """Number of time steps of the shortest part."""
        return min(part.shape[1] for part in self.parts.values())

    def strides(self, sizes: Iterable[int]) -> list[int]:
        """Return those strides of which two fit into every part."""
        return [size for size in sizes if size <= self.shortest // 2]
