"""Measure the length of every tensor of a model along every axis, as a function of the input's length.

The model runs on tensors without memory, so even large sizes cost no computation.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from neurenix_ms.execution.plan.layer_errors import ADVICE, SizeError, describe
from neurenix_ms.execution.plan.observation import (
    ModuleCall,
    Run,
    counterparts,
    matches,
    memoryless,
    shapes_only,
)

STEP = math.factorial(10)  # a multiple of every stride that occurs in practice


@dataclass(frozen=True)
class Line:
    """Length of a tensor along one axis, as a linear function of the input's length.

    `resolution` is the number of input positions per position of the tensor. For an input of length n
    the tensor has length `n / resolution + outer`. For a piece of n positions that ends inside the
    input, at a multiple of the stride, it has length `n / resolution + inner`.
    """

    dim: int
    resolution: Fraction
    inner: Fraction
    outer: Fraction

    def at(self, position: int) -> int:
        """Return the index in the tensor of an input position, a multiple of the stride."""
        return int(position / self.resolution)

    def length(self, start: int, stop: int, end: int) -> int:
        """Return the length for a tile from `start` to `stop` of an input that ends at `end`."""
        return int((stop - start) / self.resolution + (self.outer if stop == end else self.inner))

    def core(self, start: int, stop: int, end: int) -> slice:
        """Return the range of the whole tensor for these input positions; the last takes the rest."""
        whole = max(0, self.length(0, end, end))
        first = min(self.at(start), whole)
        return slice(first, whole if stop == end else max(first, min(self.at(stop), whole)))


Lines = tuple[Line, ...]


@dataclass(frozen=True)
class Lengths:
    """Stride of a model, and the lines of all tensors of a run.

    Tensors whose axes do not follow those of the input have None. If the model takes one input size,
    it takes all that differ by multiples of `period`, which includes the strides inside parts run
    whole and equals `stride` otherwise. `combining` maps calls whose values combine all positions of
    an axis, by their number in `run.seen`, to that axis.
    """

    stride: tuple[int, ...]
    period: tuple[int, ...]
    lines: list[Lines | None]
    run: Run
    combining: dict[int, int]
    size: tuple[int, ...]  # of the input

    def site(self, number: int) -> tuple[Lines | None, Lines | None]:
        """Return the lines of input and result of a site."""
        i = self.run.site_index(number)
        return self.lines[i], self.lines[i + 1]

    def calls(self) -> list[tuple[ModuleCall, Lines | None, Lines | None]]:
        """Return the calls of submodules with one input and one output tensor, and the lines of both."""
        alone = [call for call in self.run.calls if call.alone]
        first = self.run.site_index(len(self.run.sites))
        pairs = zip(self.lines[first::2], self.lines[first + 1 :: 2], strict=False)
        return [(call, x, y) for call, (x, y) in zip(alone, pairs, strict=False)]

    def bytes_per_position(self) -> float:
        """Return the bytes of all tensors of a run per position of the input."""
        storages = {s.tensor.untyped_storage()._cdata: s.tensor for s in self.run.seen}
        total = sum(t.numel() * t.element_size() for t in storages.values())
        return total / math.prod(self.size)

    def outputs(self) -> list[Lines | None]:
        """Return the lines of the outputs."""
        return self.lines[len(self.lines) - len(self.run.outputs) :]


def measure_lengths(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, parts: Mapping[str, nn.Module]
) -> Lengths:
    """Measure stride and lines for inputs of this shape, `(B, C, *S)`."""
    dims = len(shape) - 2
    mode = memoryless()

    @functools.cache
    def run(*size: int) -> Run:
        return shapes_only(model, (*shape[:2], *size), like, parts, mode)

    def longer(axis: int, more: int) -> tuple[int, ...]:
        return tuple(n + more * (a == axis) for a, n in enumerate(shape[2:]))

    here = run(*shape[2:])
    shapes = [t.shape for _, t in here.tensors()]
    there = [run(*longer(a, STEP)) for a in range(dims)]
    growths = [_grown(here, longest, STEP) for longest in there]
    follows = [_follows(per_axis) for per_axis in zip(*growths, strict=True)]
    stride = _common_stride(follows, dims)

    def aligned(period: tuple[int, ...]) -> tuple[tuple[int, ...], Run]:
        """Return the next multiple of the period and its run; one period more must behave the same."""
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
        # a part run whole may take multiples of its own stride only
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
    """Return the common stride of all layers of a model, including those in parts run whole."""
    dims = len(shape) - 2
    sizes = [tuple(n + STEP * (a == axis) for a, n in enumerate(shape[2:])) for axis in range(dims)]
    mode = memoryless()
    here = shapes_only(model, shape, like, {}, mode)
    longer = (shapes_only(model, (*shape[:2], *size), like, {}, mode) for size in sizes)
    growths = [_grown(here, run, STEP) for run in longer]
    follows = [_follows(axes) for axes in zip(*growths, strict=True)]
    # an axis whose stride does not divide the step is no spatial one, such as a list of positions
    known = [p if p and all(STEP % r.numerator == 0 for _, r in p) else None for p in follows]
    return _common_stride(known, dims)


Growth = tuple[int, Fraction]


def _common_stride(follows: list[tuple[Growth, ...] | None], dims: int) -> tuple[int, ...]:
    known = [places for places in follows if places is not None]
    return tuple(math.lcm(*(places[a][1].numerator for places in known)) for a in range(dims))


def _combining(here: Run, longer: Run) -> list[int]:
    """Return the calls whose values combine more positions for the longer input."""
    return [
        i
        for i, (seen, j) in enumerate(zip(here.seen, matches(here, longer), strict=False))
        if j is not None and longer.seen[j].combined > seen.combined
    ]


def _grown(here: Run, there: Run, step: int) -> list[list[Growth]]:
    """Return, for every tensor, the dims that grew and the input positions per position of them."""
    growths = []
    for (_, a), b in zip(here.tensors(), counterparts(here, there), strict=True):
        sizes = [] if b is None else enumerate(zip(a.shape, b.shape, strict=True))
        growths.append([(dim, Fraction(step, m - n)) for dim, (n, m) in sizes if m > n])
    return growths


def _follows(per_axis: tuple[list[Growth], ...]) -> tuple[Growth, ...] | None:
    """Return the dim that follows each axis, or None if they are not distinct."""
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
                    f"sizes of feature maps must repeat with a stride that divides {STEP}, got a tensor "
                    f"that grows by {b.shape[dim] - a.shape[dim]} for {s} positions of the input, and "
                    f"by 1 for {r}, in {describe(model, layer)}; {ADVICE}",
                    layer,
                )
