"""Cover a map with cores of one size, and find what each needs around it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.plan.reach import Halo


@dataclass(frozen=True)
class Tile:
    """A core, and the wider range around it, in cells of the map, along every axis."""

    core: tuple[tuple[int, int], ...]
    wide: tuple[tuple[int, int], ...]
    size: tuple[int, ...]  # of the map

    def window(self) -> tuple[slice, ...]:
        """The wide range, as it is read from the map."""
        return tuple(slice(start, stop) for start, stop in self.wide)

    def core_of_whole(self, lines: Lines) -> tuple[slice, ...]:
        """Where the core lies in a whole tensor with these lines."""
        cells = zip(lines, self.core, self.size, strict=True)
        return placed(lines, [line.core(*core, end) for line, core, end in cells])

    def core_of_tile(self, lines: Lines) -> tuple[slice, ...]:
        """Where the core lies in the tensor that comes of the wide range."""
        cells = []
        for line, core, wide, end in zip(lines, self.core, self.wide, self.size, strict=True):
            here = line.core(*core, end)
            cells.append(slice(here.start - line.at(wide[0]), here.stop - line.at(wide[0])))
        return placed(lines, cells)

    def wide_of_whole(self, lines: Lines) -> tuple[slice, ...]:
        """Where what a tile sees of a whole tensor lies in it."""
        cells = []
        for line, (start, stop), end in zip(lines, self.wide, self.size, strict=True):
            first = line.at(start)
            cells.append(slice(first, first + line.length(start, stop, end)))
        return placed(lines, cells)


def placed(lines: Lines, cells: Sequence[slice]) -> tuple[slice, ...]:
    """One slice for every dim of the tensor."""
    index = [slice(None)] * (1 + max(2 + len(lines) - 1, *(line.dim for line in lines)))
    for line, part in zip(lines, cells, strict=True):
        index[line.dim] = part
    return tuple(index)


@dataclass(frozen=True)
class Grid:
    """Cores of one edge length that cover a map."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    edge: tuple[int, ...]
    least: tuple[int, ...]  # a tile is at least as long

    def __len__(self) -> int:
        count = 1
        for axis in range(len(self.size)):
            count *= len(self._cores(axis))
        return count

    def tiles(self, halo: Sequence[Halo]) -> Iterator[Tile]:
        """Every core with its halo, up to the true borders."""
        for core in product(*(self._cores(axis) for axis in range(len(self.size)))):
            wide = (self._widened(a, core[a], halo[a]) for a in range(len(core)))
            yield Tile(core, tuple(wide), self.size)

    def largest(self, halo: Sequence[Halo]) -> tuple[tuple[int, int], ...]:
        """The wide range of the largest tile."""
        ranges = []
        for axis, around in enumerate(halo):
            wide = (self._widened(axis, core, around) for core in self._cores(axis))
            ranges.append(max(wide, key=lambda ends: ends[1] - ends[0]))
        return tuple(ranges)

    def _cores(self, axis: int) -> list[tuple[int, int]]:
        size, stride = self.size[axis], self.stride[axis]
        edge = max(stride, self.edge[axis] // stride * stride)
        starts = list(range(0, size, edge))
        if len(starts) > 1 and size - starts[-1] < stride:
            starts.pop()  # a core shorter than a stride joins its neighbor
        return list(zip(starts, [*starts[1:], size], strict=True))

    def _widened(self, axis: int, core: tuple[int, int], halo: Halo) -> tuple[int, int]:
        size, stride, least = self.size[axis], self.stride[axis], self.least[axis]
        start, stop = max(0, core[0] - halo[0]), min(size, core[1] + halo[1])
        missing = -(-max(0, least - (stop - start)) // stride) * stride
        after = min(size - stop, missing) if stop + missing <= size else size - stop
        stop += after
        start = max(0, start - -(-max(0, least - (stop - start)) // stride) * stride)
        return start, stop
