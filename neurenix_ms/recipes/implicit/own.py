"""A field over time of the user's own, for the case `turbulence`."""

import numpy as np
import torch

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.coordinates import is_time
from neurenix_ms.datasets.scanned import checksum
from neurenix_ms.recipes.own import values_of

LEAST = (3, 2, 2)  # times and pixels


class OwnField:
    """A field on a grid at several times, from a file.

    Args:
        array: Values `(T, H, W)`. Times are those of a NetCDF file, else 0, 1, 2, ...

    Raises:
        ValueError: If the file has other axes, or too few times or pixels, or one value everywhere.
    """

    def __init__(self, array: DiskArray) -> None:
        if array.ndim != 3 or any(n < k for n, k in zip(array.shape, LEAST, strict=True)):
            raise ValueError(
                f"{array.path} must have the axes (time, height, width) with at least {LEAST} values, "
                f"got shape {array.shape}"
            )
        self.values = values_of(array).float()
        if self.values.min() == self.values.max():
            raise ValueError(
                f"{array.path} must have different values, got {self.values.max():g} everywhere"
            )
        self.times = torch.arange(len(self.values), dtype=torch.float64)
        name = array.axes[0] if array.axes else None
        known = array.coordinates.get(str(name))
        if known is not None and is_time(str(name), known):
            self.times = torch.from_numpy(np.array(known.values, "float64"))
        self.label = array.path.name if array.units is None else f"{array.path.name}, {array.units}"
        self.folder = f"{array.path.name}_{checksum(array)[:8]}"
