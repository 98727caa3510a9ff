"""Slices of a chunked array, whose decompressed chunks are kept up to a number of bytes."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

CAPACITY = 2**27  # bytes of chunks that are kept


class KeptChunks:
    """A chunked array that decompresses a chunk once for many slices.

    Crops and tiles with halos read the same chunks again and again, and decompression takes much longer
    than a copy. An array that fits the capacity is kept at its place in a whole one, so that a slice is
    a single copy. Of a larger one, the chunks that were not used for the longest time are dropped.

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
        self._fits = math.prod(self.shape) * self.dtype.itemsize <= self.capacity
        self._whole: np.ndarray | None = None  # takes memory only where chunks are written
        counts = [-(-n // edge) for n, edge in zip(self.shape, self.edges, strict=True)]
        self._absent = np.ones(counts if self._fits else 0, bool)
        self._num_absent = self._absent.size

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a copy of a slice; steps and slices of many chunks are left to the array."""
        if self._whole is not None and not self._num_absent:
            return self._whole[index].copy()
        bounds = [at.indices(n) for at, n in zip(index, self.shape, strict=True)]
        if any(step != 1 for *_, step in bounds):
            return np.asarray(self.array[index])
        touched = [
            range(start // edge, -(-stop // edge))
            for (start, stop, _), edge in zip(bounds, self.edges, strict=True)
        ]
        if self._fits:
            return self._with(touched)[index].copy()
        if math.prod(map(len, touched)) > self._most:
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
        if self._fits:
            for place in np.unique(places, axis=0).tolist() if self._num_absent else ():
                self._with([range(n, n + 1) for n in place])
            values: np.ndarray = self._with(None)[tuple(points.T)]
            return values
        pairs = zip(map(tuple, places.tolist()), map(tuple, inside.tolist()), strict=True)
        return np.array([self._chunk(place)[here] for place, here in pairs], self.dtype)

    def _with(self, touched: Sequence[range] | None) -> np.ndarray:
        """Return the whole array, in which at least these chunks are read; None for no further ones."""
        if self._whole is None:
            self._whole = np.empty(self.shape, self.dtype)
        if touched is None or not self._num_absent:
            return self._whole
        places = tuple([slice(one.start, one.stop) for one in touched])
        absent = self._absent[places]
        if absent.all():
            self._read(self._whole, places)
        else:
            first = [one.start for one in touched]
            for place in (np.argwhere(absent) + first).tolist():
                self._read(self._whole, tuple([slice(n, n + 1) for n in place]))
        return self._whole

    def _read(self, whole: np.ndarray, places: tuple[slice, ...]) -> None:
        """Read a box of absent chunks into the whole array."""
        pairs = zip(places, self.edges, self.shape, strict=True)
        box = tuple([slice(at.start * k, min(at.stop * k, n)) for at, k, n in pairs])
        whole[box] = self.array[box]
        self._num_absent -= int(self._absent[places].size)
        self._absent[places] = False

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        slices = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, self.edges, strict=True))
        chunk = self._kept[place] = np.asarray(self.array[slices])
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return chunk
