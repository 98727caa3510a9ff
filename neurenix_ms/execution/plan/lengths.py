"""Measure how long every tensor of a model is along every axis, as a function of the map's length.

Found by running the model on tensors without memory, so any size costs nothing.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from neurenix_ms.execution.plan.culprits import ADVICE, SizeError, called
from neurenix_ms.execution.plan.observation import (
    ModuleCall,
    Run,
    counterparts,
    matches,
    shapes_only,
)

STEP = math.factorial(10)  # a multiple of every stride that is met in practice


@dataclass(frozen=True)
class Line:
    """The length of a tensor along one axis: cells of the map per cell, and what borders add or take.

    A map that ends inside, at a multiple of the stride, gives `n / resolution + inner` cells, the map
    itself `n / resolution + outer`.
    """

    dim: int
    resolution: Fraction
    inner: Fraction
    outer: Fraction

    def at(self, cell: int) -> int:
        """Where the cell of the map, a multiple of the stride, lies."""
        return int(cell / self.resolution)

    def length(self, start: int, stop: int, end: int) -> int:
        """Cells that come of a tile from `start` to `stop` of a map that ends at `end`."""
        return int((stop - start) / self.resolution + (self.outer if stop == end else self.inner))

    def core(self, start: int, stop: int, end: int) -> slice:
        """What of the whole tensor belongs to these cells of the map; all that is left, at the end."""
        whole = max(0, self.length(0, end, end))
        first = min(self.at(start), whole)
        return slice(first, whole if stop == end else max(first, min(self.at(stop), whole)))


Lines = tuple[Line, ...]


@dataclass(frozen=True)
class Lengths:
    """The stride of a model, and the lines of all tensors of a run.

    A tensor whose axes do not follow those of the map has None. Sizes that differ by multiples of
    `period` are taken alike by the whole model, also by the parts that run whole inside; elsewhere it
    is the stride. `combining` has the calls, by their number in `run.seen`, of which a value takes all
    cells of an axis, and that axis.
    """

    stride: tuple[int, ...]
    period: tuple[int, ...]
    lines: list[Lines | None]
    run: Run
    combining: dict[int, int]
    size: tuple[int, ...]  # of the map

    def site(self, number: int) -> tuple[Lines | None, Lines | None]:
        """The lines of input and result of a site."""
        i = self.run.site_index(number)
        return self.lines[i], self.lines[i + 1]

    def calls(self) -> list[tuple[ModuleCall, Lines | None, Lines | None]]:
        """The calls of submodules with one tensor in and one out, and the lines of both."""
        alone = [call for call in self.run.calls if call.alone]
        first = self.run.site_index(len(self.run.sites))
        pairs = zip(self.lines[first::2], self.lines[first + 1 :: 2], strict=False)
        return [(call, x, y) for call, (x, y) in zip(alone, pairs, strict=False)]

    def bytes_per_cell(self) -> float:
        """Bytes of all tensors of a run, per cell of the map."""
        storages = {id(s.tensor.untyped_storage()): s.tensor for s in self.run.seen}
        total = sum(t.numel() * t.element_size() for t in storages.values())
        return total / math.prod(self.size)

    def outputs(self) -> list[Lines | None]:
        """The lines of the outputs."""
        return self.lines[len(self.lines) - len(self.run.outputs) :]


def measure_lengths(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, parts: Mapping[str, nn.Module]
) -> Lengths:
    """Stride and lines for maps of this shape, `(B, C, *S)`."""
    dims = len(shape) - 2

    @functools.cache
    def run(*size: int) -> Run:
        return shapes_only(model, (*shape[:2], *size), like, parts)

    def longer(axis: int, more: int) -> tuple[int, ...]:
        return tuple(n + more * (a == axis) for a, n in enumerate(shape[2:]))

    here = run(*shape[2:])
    shapes = [t.shape for _, t in here.tensors()]
    there = [run(*longer(a, STEP)) for a in range(dims)]
    growths = [_grown(here, longest, STEP) for longest in there]
    follows = [_follows(per_axis) for per_axis in zip(*growths, strict=True)]
    stride = _common_stride(follows, dims)

    def aligned(period: tuple[int, ...]) -> tuple[tuple[int, ...], Run]:
        """The next size that the period divides; one period more must be taken alike."""
        more = run(*(n + p for n, p in zip(shape[2:], period, strict=True)))
        _check_period(model, here, more, period, follows)
        size = tuple(-(-n // p) * p for n, p in zip(shape[2:], period, strict=True))
        return size, run(*size)

    period = stride
    try:
        size, ending_inside = aligned(period)
    except ValueError:
        if not parts:
            raise
        # a part that runs whole may take multiples of its own stride only
        inside = measure_period(model, shape, like)
        period = tuple(math.lcm(s, p) for s, p in zip(stride, inside, strict=True))
        size, ending_inside = aligned(period)
    ends_inside = counterparts(here, ending_inside)
    lines: list[Lines | None] = []
    for places, outer, inner in zip(follows, shapes, ends_inside, strict=True):
        if places is None or inner is None:
            lines.append(None)
            continue
        lines.append(
            tuple(
                Line(dim, r, inner.shape[dim] - m / r, outer[dim] - n / r)
                for (dim, r), m, n in zip(places, size, shape[2:], strict=True)
            )
        )
    combining = {i: a for a in reversed(range(dims)) for i in _combining(here, there[a])}
    return Lengths(stride, period, lines, here, combining, shape[2:])


def measure_period(model: nn.Module, shape: tuple[int, ...], like: Tensor) -> tuple[int, ...]:
    """The stride of all layers of a model, those in parts that run whole among them."""
    dims = len(shape) - 2
    sizes = [tuple(n + STEP * (a == axis) for a, n in enumerate(shape[2:])) for axis in range(dims)]
    here = shapes_only(model, shape, like, {})
    longer = (shapes_only(model, (*shape[:2], *size), like, {}) for size in sizes)
    growths = [_grown(here, run, STEP) for run in longer]
    follows = [_follows(axes) for axes in zip(*growths, strict=True)]
    # what divides no step is the length of something else, such as a list of positions
    known = [p if p and all(STEP % r.numerator == 0 for _, r in p) else None for p in follows]
    return _common_stride(known, dims)


Growth = tuple[int, Fraction]


def _common_stride(follows: list[tuple[Growth, ...] | None], dims: int) -> tuple[int, ...]:
    known = [places for places in follows if places is not None]
    return tuple(math.lcm(*(places[a][1].numerator for places in known)) for a in range(dims))


def _combining(here: Run, longer: Run) -> list[int]:
    """The calls of which a value takes more cells on the longer map."""
    return [
        i
        for i, (seen, j) in enumerate(zip(here.seen, matches(here, longer), strict=False))
        if j is not None and longer.seen[j].combined > seen.combined
    ]


def _grown(here: Run, there: Run, step: int) -> list[list[Growth]]:
    """By tensor: the dims that grew, and the cells of the map for each of their cells."""
    growths = []
    for (_, a), b in zip(here.tensors(), counterparts(here, there), strict=True):
        sizes = [] if b is None else enumerate(zip(a.shape, b.shape, strict=True))
        growths.append([(dim, Fraction(step, m - n)) for dim, (n, m) in sizes if m > n])
    return growths


def _follows(per_axis: tuple[list[Growth], ...]) -> tuple[Growth, ...] | None:
    """One dim of its own for every axis, or None."""
    if any(len(places) != 1 for places in per_axis):
        return None
    places = tuple(places[0] for places in per_axis)
    return places if len({dim for dim, _ in places}) == len(places) else None


def _check_period(
    model: nn.Module,
    here: Run,
    longer: Run,
    stride: tuple[int, ...],
    follows: list[tuple[Growth, ...] | None],
) -> None:
    pairs = zip(here.tensors(), counterparts(here, longer), follows, strict=True)
    for i, ((_, a), b, places) in enumerate(pairs):
        for (dim, r), s in zip(places or (), stride, strict=False):
            if b is not None and b.shape[dim] - a.shape[dim] != s / r:
                layer = here.seen[i].layer if i < len(here.seen) else ""
                raise SizeError(
                    f"sizes of maps must repeat with a stride that divides {STEP}, got a tensor "
                    f"that grows by {b.shape[dim] - a.shape[dim]} for {s} cells, and by 1 for {r}, "
                    f"in {called(model, layer)}; {ADVICE}",
                    layer,
                )
