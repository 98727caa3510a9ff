"""Arrays on disk: a noisy image and the clean one, made chunk by chunk, and the place of the result."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import move
from neurenix_ms._core.seeds import generator_of
from neurenix_ms.datasets import create_array
from neurenix_ms.datasets.readers import needed

NUM_WAVES = 6
NOISE = 0.5
CHUNK = {2: 256, 3: 48}  # edge length of the chunks of both


def make_arrays(folder: Path, size: Sequence[int], seed: int) -> None:
    """Write `x.zarr` and `target.zarr` unless they are there; no more than a chunk is in memory.

    The target is a sum of waves whose amplitude grows along the first axis, so that tiles differ in
    their statistics; the input is the target with noise. Values depend on size and seed only.
    """
    shape = (1, 1, *size)
    paths = folder / "x.zarr", folder / "target.zarr"
    if all(path.exists() for path in paths):
        return
    chunks = (1, 1, *(min(CHUNK[len(size)], n) for n in size))
    parts = [path.with_name(f".{path.name[:-5]}.part.zarr") for path in paths]
    x, target = (create_array(part, shape, chunks=chunks, overwrite=True) for part in parts)
    for number, ranges in enumerate(_chunks(size, chunks[2:])):
        clean = _waves(ranges, size[0], seed)
        noise = torch.randn(clean.shape, generator=generator_of(seed, number + 1))
        index = (0, 0, *(slice(r.start, r.stop) for r in ranges))
        target[index] = clean.numpy()
        x[index] = (clean + NOISE * noise).numpy()
    for part, path in zip(parts, paths, strict=True):
        move(part, path)


def open_zarr(path: Path, mode: str = "r") -> Any:
    """Open an array of which every process reads or writes its windows."""
    return needed("zarr").open_array(path, mode=mode)


def _chunks(size: Sequence[int], edges: Sequence[int]) -> Iterator[Sequence[range]]:
    return itertools.product(
        *(
            [range(start, min(start + edge, n)) for start in range(0, n, edge)]
            for n, edge in zip(size, edges, strict=True)
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
