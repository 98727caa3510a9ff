"""Grid of tiles that covers an input: cores of one size, each with its halo."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.plan.reach import Halo


@dataclass(frozen=True)
class Tile:
    """A core and the wider range with its halo, in positions of the input along every axis."""

    core: tuple[tuple[int, int], ...]
    wide: tuple[tuple[int, int], ...]
    size: tuple[int, ...]  # of the input

    def window(self) -> tuple[slice, ...]:
        """Return the slices that read the wide range from the input."""
        return tuple(slice(start, stop) for start, stop in self.wide)

    def core_of_whole(self, lines: Lines) -> tuple[slice, ...]:
        """Return the slices of the core in a whole tensor with these lines."""
        axes = zip(lines, self.core, self.size, strict=True)
        return index_of(lines, [line.core(*core, end) for line, core, end in axes])

    def core_of_tile(self, lines: Lines) -> tuple[slice, ...]:
        """Return the slices of the core in the tensor computed from the wide range."""
        ranges = []
        for line, core, wide, end in zip(lines, self.core, self.wide, self.size, strict=True):
            here = line.core(*core, end)
            ranges.append(slice(here.start - line.at(wide[0]), here.stop - line.at(wide[0])))
        return index_of(lines, ranges)

    def wide_of_whole(self, lines: Lines) -> tuple[slice, ...]:
        """Return the slices of the wide range in a whole tensor with these lines."""
        ranges = []
        for line, (start, stop), end in zip(lines, self.wide, self.size, strict=True):
            first = line.at(start)
            ranges.append(slice(first, first + line.length(start, stop, end)))
        return index_of(lines, ranges)


def index_of(lines: Lines, ranges: Sequence[slice]) -> tuple[slice, ...]:
    """Return one slice for every dim of the tensor, from one range per axis."""
    index = [slice(None)] * (1 + max(2 + len(lines) - 1, *(line.dim for line in lines)))
    for line, part in zip(lines, ranges, strict=True):
        index[line.dim] = part
    return tuple(index)


@dataclass(frozen=True)
class Grid:
    """Cores of one edge length that cover an input."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    edge: tuple[int, ...]
    least: tuple[int, ...]  # smallest length of a tile

    def __len__(self) -> int:
        count = 1
        for axis in range(len(self.size)):
            count *= len(self._cores(axis))
        return count

    def tiles(self, halo: Sequence[Halo]) -> Iterator[Tile]:
        """Yield every core with its halo, which ends at the borders of the input."""
        for core in product(*(self._cores(axis) for axis in range(len(self.size)))):
            wide = (self._widened(a, core[a], halo[a]) for a in range(len(core)))
            yield Tile(core, tuple(wide), self.size)

    def largest(self, halo: Sequence[Halo]) -> tuple[tuple[int, int], ...]:
        """Return the wide range of the largest tile."""
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
            starts.pop()  # merge a core shorter than a stride with its neighbor
        return list(zip(starts, [*starts[1:], size], strict=True))

    def _widened(self, axis: int, core: tuple[int, int], halo: Halo) -> tuple[int, int]:
        return widened(core, halo, self.size[axis], self.stride[axis], self.least[axis])


def widened(
    core: tuple[int, int], halo: Halo, size: int, stride: int, least: int
) -> tuple[int, int]:
    """Return a core with its halo along one axis, at least as long as the smallest tile."""
    start, stop = max(0, core[0] - halo[0]), min(size, core[1] + halo[1])
    missing = -(-max(0, least - (stop - start)) // stride) * stride
    after = min(size - stop, missing) if stop + missing <= size else size - stop
    stop += after
    start = max(0, start - -(-max(0, least - (stop - start)) // stride) * stride)
    return start, stop
