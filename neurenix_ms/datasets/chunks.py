"""Slices of a chunked array, whose decompressed chunks are kept up to a number of bytes."""

import itertools
import math
from collections import OrderedDict
from typing import Any

import numpy as np

CAPACITY = 2**27  # bytes of chunks that are kept


class KeptChunks:
    """A chunked array that decompresses a chunk once for many slices.

    Crops and tiles with halos read the same chunks again and again, and decompression takes much longer
    than a copy. The chunks that were not used for the longest time are dropped.

    Args:
        array: Slices, and has a shape, a dtype and a shape of chunks.
        capacity: Bytes of chunks that are kept; `CAPACITY` by default.
    """

    def __init__(self, array: Any, capacity: int | None = None) -> None:
        self.array = array
        self.capacity = CAPACITY if capacity is None else capacity
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.edges = tuple(array.chunks)
        self._kept: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self._most = self.capacity // max(1, math.prod(self.edges) * self.dtype.itemsize)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a slice; steps and slices of many chunks are left to the array."""
        bounds = [at.indices(n) for at, n in zip(index, self.shape, strict=True)]
        touched = [
            range(start // edge, -(-stop // edge))
            for (start, stop, _), edge in zip(bounds, self.edges, strict=True)
        ]
        if any(step != 1 for *_, step in bounds) or math.prod(map(len, touched)) > self._most:
            return np.asarray(self.array[index])
        result = np.empty([max(0, stop - start) for start, stop, _ in bounds], self.dtype)
        for place in itertools.product(*touched):
            inside, here = [], []
            for number, edge, (start, stop, _) in zip(place, self.edges, bounds, strict=True):
                low, high = max(start, number * edge), min(stop, (number + 1) * edge)
                inside.append(slice(low - number * edge, high - number * edge))
                here.append(slice(low - start, high - start))
            result[tuple(here)] = self._chunk(place)[tuple(inside)]
        return result

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the values at points `(N, ndim)`."""
        places, inside = np.divmod(points, self.edges)
        pairs = zip(map(tuple, places.tolist()), map(tuple, inside.tolist()), strict=True)
        return np.array([self._chunk(place)[here] for place, here in pairs], self.dtype)

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        slices = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, self.edges, strict=True))
        chunk = self._kept[place] = np.asarray(self.array[slices])
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return chunk
