"""How long every tensor of a model is along every axis, as a function of the map's length.

Found by running the model on tensors without memory, so any size costs nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from neurenix_ms.execution.observation import ModuleCall, Run, counterparts, shapes_only

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

    A tensor whose axes do not follow those of the map has None.
    """

    stride: tuple[int, ...]
    lines: list[Lines | None]
    run: Run

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

    def outputs(self) -> list[Lines | None]:
        """The lines of the outputs."""
        return self.lines[len(self.lines) - len(self.run.outputs) :]


def measure_lengths(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, parts: Mapping[str, nn.Module]
) -> Lengths:
    """Stride and lines for maps of this shape, `(B, C, *S)`."""
    dims = len(shape) - 2

    def run(*size: int) -> Run:
        return shapes_only(model, (*shape[:2], *size), like, parts)

    def longer(axis: int, more: int) -> tuple[int, ...]:
        return tuple(n + more * (a == axis) for a, n in enumerate(shape[2:]))

    here = run(*shape[2:])
    shapes = [t.shape for _, t in here.tensors()]
    growths = [_grown(here, run(*longer(a, STEP)), STEP) for a in range(dims)]
    follows = [_follows(per_axis) for per_axis in zip(*growths, strict=True)]
    stride = tuple(
        math.lcm(*(places[a][1].numerator for places in follows if places is not None))
        for a in range(dims)
    )
    _expect_period(
        here, run(*(n + s for n, s in zip(shape[2:], stride, strict=True))), stride, follows
    )
    aligned = tuple(-(-n // s) * s for n, s in zip(shape[2:], stride, strict=True))
    ends_inside = counterparts(here, run(*aligned))
    lines: list[Lines | None] = []
    for places, outer, inner in zip(follows, shapes, ends_inside, strict=True):
        if places is None or inner is None:
            lines.append(None)
            continue
        lines.append(
            tuple(
                Line(dim, r, inner.shape[dim] - m / r, outer[dim] - n / r)
                for (dim, r), m, n in zip(places, aligned, shape[2:], strict=True)
            )
        )
    return Lengths(stride, lines, here)


Place = tuple[int, Fraction]


def _grown(here: Run, there: Run, step: int) -> list[list[Place]]:
    """By tensor: the dims that grew, and the cells of the map for each of their cells."""
    growths = []
    for (_, a), b in zip(here.tensors(), counterparts(here, there), strict=True):
        sizes = [] if b is None else enumerate(zip(a.shape, b.shape, strict=True))
        growths.append([(dim, Fraction(step, m - n)) for dim, (n, m) in sizes if m > n])
    return growths


def _follows(per_axis: tuple[list[Place], ...]) -> tuple[Place, ...] | None:
    """One dim of its own for every axis, or None."""
    if any(len(places) != 1 for places in per_axis):
        return None
    places = tuple(places[0] for places in per_axis)
    return places if len({dim for dim, _ in places}) == len(places) else None


def _expect_period(
    here: Run, longer: Run, stride: tuple[int, ...], follows: list[tuple[Place, ...] | None]
) -> None:
    for (_, a), b, places in zip(here.tensors(), counterparts(here, longer), follows, strict=True):
        for (dim, r), s in zip(places or (), stride, strict=False):
            if b is not None and b.shape[dim] - a.shape[dim] != s / r:
                raise ValueError(
                    f"sizes of maps must repeat with a stride that divides {STEP}, got a tensor "
                    f"that grows by {b.shape[dim] - a.shape[dim]} for {s} cells, and by 1 for {r}"
                )
