"""Arrays on disk, made chunk by chunk: an image with noise, and without."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import move
from neurenix_ms._core.seeds import generator_of
from neurenix_ms.datasets import create_array
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.readers import needed
from neurenix_ms.recipes.own import check_finite_values, check_real

NUM_WAVES = 6
NOISE = 0.5
CHUNK = {2: 256, 3: 48}  # edge length of the chunks of both
LEAST_SIZE = 8  # pixels or voxels along each axis


class OwnImage:
    """An image or a volume of the user's own as the target, in standard deviations from its mean.

    Args:
        array: Values of two or three axes.

    Raises:
        ValueError: If the file has other axes, is too small, or has complex values.
    """

    def __init__(self, array: DiskArray) -> None:
        if array.ndim not in CHUNK or min(array.shape) < LEAST_SIZE:
            raise ValueError(
                f"{array.path} must have two or three axes of at least {LEAST_SIZE} pixels or voxels, "
                f"got shape {array.shape}"
            )
        check_real(array)
        self.array = array

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation; the first access reads the file once, chunk by chunk.

        Raises:
            ValueError: If values are missing or infinite, or there is one value everywhere.
        """
        count, mean, squares = 0, 0.0, 0.0
        low, high = math.inf, -math.inf
        for ranges in _chunks(self.array.shape):
            values = self._read(ranges)
            check_finite_values(self.array, values, [r.start for r in ranges])
            total, off = count + values.size, values.mean() - mean
            squares += values.size * (values.var() + off**2 * count / total)
            mean += off * values.size / total
            count, low, high = total, min(low, values.min()), max(high, values.max())
        if low == high:
            raise ValueError(
                f"{self.array.path} must have different values, got {low:g} everywhere"
            )
        return float(mean), math.sqrt(squares / count)

    def piece(self, ranges: Sequence[range]) -> Tensor:
        """Return a piece of the target."""
        mean, std = self.moments
        return torch.from_numpy((self._read(ranges) - mean) / std).float()

    def _read(self, ranges: Sequence[range]) -> np.ndarray:
        return np.array(self.array[_slices(ranges)], "float64")


def make_arrays(folder: Path, size: Sequence[int], seed: int, own: OwnImage | None = None) -> None:
    """Write `x.zarr` and `target.zarr` unless they are there; no more than a chunk is in memory.

    The input is the target with noise. The target is an image of the user's own, or a sum of waves whose
    amplitude grows along the first axis, so that tiles differ in their statistics. Values depend on that
    image, size and seed only.
    """
    shape = (1, 1, *size)
    paths = folder / "x.zarr", folder / "target.zarr"
    if all(path.exists() for path in paths):
        return
    piece = partial(_waves, length=size[0], seed=seed) if own is None else own.piece
    parts = [path.with_name(f".{path.name[:-5]}.part.zarr") for path in paths]
    chunks = (1, 1, *_edges(size))
    x, target = (create_array(part, shape, chunks=chunks, overwrite=True) for part in parts)
    for number, ranges in enumerate(_chunks(size)):
        clean = piece(ranges)
        noise = torch.randn(clean.shape, generator=generator_of(seed, number + 1))
        index = (0, 0, *_slices(ranges))
        target[index] = clean.numpy()
        x[index] = (clean + NOISE * noise).numpy()
    if own is not None:
        own.array.check_unchanged()
    for part, path in zip(parts, paths, strict=True):
        move(part, path)


def open_zarr(path: Path, mode: str = "r") -> Any:
    """Open an array of which every process reads or writes its windows."""
    return needed("zarr").open_array(path, mode=mode)


def _edges(size: Sequence[int]) -> list[int]:
    return [min(CHUNK[len(size)], n) for n in size]


def _slices(ranges: Sequence[range]) -> tuple[slice, ...]:
    return tuple(slice(r.start, r.stop) for r in ranges)


def _chunks(size: Sequence[int]) -> Iterator[Sequence[range]]:
    return itertools.product(
        *(
            [range(start, min(start + edge, n)) for start in range(0, n, edge)]
            for n, edge in zip(size, _edges(size), strict=True)
        )
    )


def _waves(ranges: Sequence[range], length: int, seed: int) -> Tensor:
    """Return a piece of the clean image, whose first axis has this length."""
    generator = generator_of(seed, 0)
    dims = len(ranges)
    slopes = (torch.rand(NUM_WAVES, dims, generator=generator) - 0.5) * 2 * math.pi / 6
    phases = 2 * math.pi * torch.rand(NUM_WAVES, generator=generator)
    positions = torch.meshgrid(*(torch.arange(r.start, r.stop) for r in ranges), indexing="ij")
    total = torch.zeros(positions[0].shape)
    for slope, phase in zip(slopes, phases, strict=True):
        total += torch.sin(sum(s * p for s, p in zip(slope, positions, strict=True)) + phase)
    return total / NUM_WAVES * (1 + 2 * positions[0] / length)
