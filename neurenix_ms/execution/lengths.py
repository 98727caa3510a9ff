"""How long every tensor of a model is along every axis, as a function of the map's length.

Found by running the model on tensors without memory, so any size costs nothing.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from neurenix_ms.checkpointing import enable_gradient_checkpointing, statistics_kept
from neurenix_ms.execution.sites import Interception, Part, Site, nothing_remembered

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
class Seen:
    """A tensor that a function of torch returned, and in which module."""

    layer: str
    function: str
    tensor: Tensor


@dataclass(frozen=True)
class ModuleCall:
    """A call of a submodule; `alone` if it got one tensor and returned one, and nothing else."""

    name: str
    alone: bool
    x: Tensor | None
    y: Tensor | None


@dataclass
class Run:
    """What happened while the model ran: every tensor, site and call of a module, and the outputs."""

    seen: list[Seen] = field(default_factory=list)
    sites: list[tuple[Site, Tensor]] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # of the sites
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    structure: TreeSpec | None = None

    def site_index(self, number: int) -> int:
        """Where the input of a site stands in `tensors()`; its result follows."""
        return len(self.seen) + 2 * number

    def tensors(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """Every tensor, under a key by which it is found again in a run on another size."""
        seen = [((s.layer, s.function), s.tensor) for s in self.seen]
        sites = [(("site",), t) for site, result in self.sites for t in (site.x, result)]
        calls = [((c.name, "module"), t) for c in self.calls for t in (c.x, c.y) if t is not None]
        return [*seen, *sites, *calls, *((("output",), t) for t in self.outputs)]


def counterparts(run: Run, other: Run) -> list[Tensor | None]:
    """For every tensor of `run` the same one of `other`; sizes that need no padding leave some out."""
    mine, theirs = run.tensors(), other.tensors()
    keys, other_keys = [key for key, _ in mine], [key for key, _ in theirs]
    if keys == other_keys:
        return [t for _, t in theirs]
    if len(run.sites) != len(other.sites) or len(run.outputs) != len(other.outputs):
        raise ValueError(
            "a model run in tiles must do the same on maps of every size, got "
            f"{len(run.sites)} sites and {len(run.outputs)} outputs on one size, "
            f"{len(other.sites)} and {len(other.outputs)} on another"
        )
    found: list[Tensor | None] = [None] * len(mine)
    for i, j, n in SequenceMatcher(None, keys, other_keys, autojunk=False).get_matching_blocks():
        found[i : i + n] = [t for _, t in theirs[j : j + n]]
    return found


def observe(
    model: nn.Module,
    x: Tensor,
    parts: Mapping[str, nn.Module],
    answer: Callable[[int, Site], Tensor],
    listen: Callable[[Seen], None] | None = None,
) -> Run:
    """Run `model` on `x`, sites answered by `answer`, and note what happens."""
    run = Run()
    names: list[str] = [""]

    def visit(index: int, site: Site) -> Tensor:
        result = answer(index, site)
        run.sites.append((site, result))
        run.layers.append(site.name if isinstance(site, Part) else names[-1])
        return result

    def watch(function: Callable[..., Any], result: Any, args: tuple[Any, ...]) -> None:
        name = getattr(function, "__name__", str(function))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                run.seen.append(Seen(names[-1], name, leaf))
                if listen is not None:
                    listen(run.seen[-1])
        if function in (F.interpolate, F.upsample) and isinstance(args[0], Tensor):
            run.seen.append(Seen(names[-1], "resized", args[0]))

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if result is not None and not mode.inside_a_part:
            leaves = tree_leaves((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            only = len(tensors) == 1 and all(leaf is None or leaf is tensors[0] for leaf in leaves)
            alone = only and isinstance(result, Tensor)
            ends = (tensors[0], result) if alone else (None, None)
            run.calls.append(ModuleCall(names[-1], alone, *ends))
        names.pop()

    mode = Interception(parts, visit, watch)
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        with (
            torch.no_grad(),
            enable_gradient_checkpointing(False),
            statistics_kept(model),
            nothing_remembered(model),
            mode,
        ):
            leaves, run.structure = tree_flatten(model(x))
    finally:
        for handle in handles:
            handle.remove()
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(t).__name__ for t in leaves if not isinstance(t, Tensor)})
        raise ValueError(f"a model run in tiles must return tensors only, got {kinds}")
    run.outputs = leaves
    return run


def constants(index: int, site: Site) -> Tensor:
    """Parts run, and every mean is 0 and every variance 1."""
    return site.plain() if isinstance(site, Part) else site.normalised(*site.constants())


def shapes_only(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, parts: Mapping[str, nn.Module]
) -> Run:
    """What happens on a map of this shape, without computing it."""
    with without_memory(model):
        x = torch.empty(shape, dtype=like.dtype, device=like.device)
        return observe(model, x, parts, constants)


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Let tensors have shapes only; what does not fit is an exception, and not logged by torch."""
    counted = [m for m in model.modules() if m._buffers.get("num_batches_tracked") is not None]
    counters = [m._buffers["num_batches_tracked"] for m in counted]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    for module in counted:  # a mean over all batches would read its counter
        module._buffers["num_batches_tracked"] = None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.disabled = was_disabled
        for module, counter in zip(counted, counters, strict=True):
            module._buffers["num_batches_tracked"] = counter


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
    _expect_period(here, run(*(n + s for n, s in zip(shape[2:], stride, strict=True))), stride, follows)
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
