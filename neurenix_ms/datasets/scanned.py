"""Dataset of cubes of a scanned rock with the potential and conductance of their pores."""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_integers, check_number
from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.datasets.porous import MAX_DRAWS, first_solved, import_solvers

PLANES = 16  # that are read at a time for the checksum


class ScannedConduction(Dataset[dict[str, Tensor]]):
    """Random boxes of a segmented scan, and the steady conduction (or diffusion) through their pores.

    Use it to train on your own rock as on `PorousConduction`, whose items it has. Boxes are cut at
    random places; pores that do not connect the two end faces are turned into solid, and taufactor
    solves Laplace's equation in what remains. Boxes without a connected path, or without solid, are
    drawn again.

    Sample `i` depends on the scan, `seed`, `i` and the parameters below only. Samples are computed at
    construction and cached under `root`; an interrupted run resumes.

    Args:
        root: Folder for the cached samples.
        scan: Array of two or three axes that holds labels; a NumPy array, or what `open_array` returns.
        num_samples: Number of samples.
        size: Voxels along each axis of a box, one number or one per axis; at least 4.
        pore_values: Labels of the pores.
        seed: Seed of the places.
        tolerance: Largest relative difference of the flux through the layers of a solution.
        max_iterations: Largest number of sweeps, at least 200.
        progress: Show a progress bar while samples are computed.

    Shape:
        See `PorousConduction`.

    Raises:
        ValueError: If the scan has another number of axes or is smaller than a box, or an argument is
            out of range.
        ImportError: If samples must be computed and porespy, taufactor or scipy is missing.
        RuntimeError: If none of 1000 boxes conducts.
        IndexError: If there is no such sample.

    Examples:
        >>> import tempfile
        >>> scan = np.random.default_rng(0).random((20, 24, 22)) < 0.7
        >>> with tempfile.TemporaryDirectory() as root:
        ...     data = ScannedConduction(root, scan, 1, size=8, progress=False)
        ...     data[0]["potential"].shape
        torch.Size([1, 8, 8, 8])
    """

    @checked
    def __init__(
        self,
        root: str | os.PathLike[str],
        scan: Any,
        num_samples: int,
        size: int | Sequence[int] = 32,
        pore_values: Sequence[int] = (1,),
        seed: int = 0,
        *,
        tolerance: float = 1e-3,
        max_iterations: int = 10_000,
        progress: bool = True,
    ) -> None:
        dims = len(getattr(scan, "shape", ()))
        if dims not in (2, 3):
            raise ValueError(
                f"scan must be an array of two or three axes, got {tuple(getattr(scan, 'shape', ()))}"
            )
        edges = [size] * dims if isinstance(size, int) else size
        self.shape = check_integers("size", edges, 4, length=dims)
        if any(n < k for n, k in zip(scan.shape, self.shape, strict=True)):
            raise ValueError(
                f"scan must be at least {tuple(self.shape)} long, got {tuple(scan.shape)}"
            )
        self.scan = scan
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.pore_values = check_integers("pore_values", pore_values, min_length=1)
        self.seed = check_integer("seed", seed, 0)
        self.tolerance = check_number("tolerance", tolerance, above=0, below=1)
        self.max_iterations = check_integer("max_iterations", max_iterations, 200)
        parameters = {
            "scan": checksum(scan),
            "shape": [int(n) for n in scan.shape],
            "size": self.shape,
            "pore_values": self.pore_values,
            "seed": self.seed,
            "tolerance": self.tolerance,
            "max_iterations": self.max_iterations,
        }
        packages = ("porespy", "taufactor")
        self.cache = SampleCache(root, "scanned_conduction", parameters, self._make, packages)
        self.cache.fill(num_samples, progress=progress)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index must be below {self.num_samples}, got {index}")
        return {name: value.float() for name, value in self.cache[index].items()}

    def _make(self, index: int) -> dict[str, Tensor]:
        draw = partial(self._draw, index)
        sample = first_solved(draw, index, self.tolerance, self.max_iterations)
        if sample is not None:
            return sample
        raise RuntimeError(
            f"none of {MAX_DRAWS} boxes of {self.shape} voxels conducts along the first axis with "
            f"pore_values {self.pore_values}; check the labels of the pores, or take larger boxes"
        )

    def _draw(self, index: int, draw: int) -> Any:
        """Return a boolean array of the connected pores of a box."""
        random = np.random.default_rng([self.seed, index, draw])
        corner = [
            int(random.integers(n - k + 1))
            for n, k in zip(self.scan.shape, self.shape, strict=True)
        ]
        box = self.scan[tuple(slice(c, c + k) for c, k in zip(corner, self.shape, strict=True))]
        pores = np.isin(np.asarray(box), self.pore_values)
        return import_solvers()[0].filters.trim_nonpercolating_paths(pores, axis=0)


def checksum(scan: Any) -> str:
    """Return a checksum of an array, which is read a few planes at a time."""
    total = hashlib.sha256(str(scan.dtype).encode())
    for first in range(0, scan.shape[0], PLANES):
        total.update(np.ascontiguousarray(scan[first : first + PLANES]).tobytes())
    return total.hexdigest()[:16]
