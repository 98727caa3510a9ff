"""Choose the parts run whole and the size of tiles by the memory that they need."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from neurenix_ms._core.recomputation import statistics_kept
from neurenix_ms.execution.plan.arguments import Others, is_batched, with_passed
from neurenix_ms.execution.plan.footprint import Plan, make_plan
from neurenix_ms.execution.plan.grid import Grid
from neurenix_ms.execution.plan.layer_errors import LayerError, SizeError
from neurenix_ms.execution.plan.lengths import Lengths, Lines, measure_lengths
from neurenix_ms.execution.plan.observation import constants, without_memory
from neurenix_ms.execution.plan.requirements import uneven_resizing
from neurenix_ms.execution.plan.sharing import is_inside, outermost
from neurenix_ms.execution.plan.sites import (
    Interception,
    Part,
    Site,
    submodules,
    without_cached_features,
)
from neurenix_ms.meter import LiveStorages, count_flops, peak_tensor_bytes

Edge = tuple[int, ...]
MOST_IN_STEP = 64  # tiles of a process: each waits in a thread of its own
WORTH_A_HALO = 0.9  # of the operations: a wider halo also takes memory, and time besides
SMALL_IN_STEP = 2**28  # bytes that tiles in step may always take, if there is no memory limit
# single pointwise layers, which need no halo, so that running them whole gains nothing
POINTWISE = {
    f"torch.nn.modules.{kind}"
    for kind in ("activation", "batchnorm", "instancenorm", "normalization", "dropout", "linear")
}


def choose_parts(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    edge: Edge | None,
    memory_limit: int | None,
    num_ranks: int = 1,
) -> tuple[str, ...]:
    """Return parts, at half the resolution or less, that fit into memory when run whole.

    Without a limit, the memory of one tile is the limit. One process takes the shallowest parts, which
    leave the smallest halo. Ranks with a tile each take those with which a rank has the fewest
    operations, or somewhat more with a smaller halo: every rank runs a part on the whole input, so a
    deeper one may cost less in spite of its wider halo.
    """
    choices = _fitting_parts(model, shape, like, edge, memory_limit, num_ranks)
    if num_ranks == 1 or edge is not None:
        return next((names for names, _ in choices), ())
    best: tuple[int, tuple[str, ...]] | None = None
    for names, plan in choices:
        operations = _operations_of_rank(model, shape, like, plan, names, num_ranks)
        if best is not None and operations > WORTH_A_HALO * best[0]:
            break
        best = operations, names
    return () if best is None else best[1]


def _fitting_parts(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    edge: Edge | None,
    memory_limit: int | None,
    num_ranks: int,
) -> Iterator[tuple[tuple[str, ...], Plan]]:
    """Yield the choices of parts that fit into memory, shallowest first, with the plan for each."""
    with torch.inference_mode(False):  # inference tensors have no version counter
        lengths = measure_lengths(model, (1, *shape[1:]), like, {})
    # without a limit, no tile takes more than the whole input; to compare with that first saves plans
    most = peak_of_whole(model, shape, like) if memory_limit is None else memory_limit
    calls = candidates(model, lengths)
    # layers that cannot run in tiles, so parts run whole must contain them
    outside = {seen.layer for seen, _ in uneven_resizing(lengths)}
    for names in choices_of(calls):
        if not contain(names, outside):
            continue
        needed = _bytes_whole(model, names, lengths, shape[0])
        if needed > most:
            continue
        try:
            plan = make_plan(model, shape, like, names, memory_limit)
        except ValueError as error:  # the rest of the model cannot run in tiles
            if isinstance(error, LayerError) and not isinstance(error, SizeError):
                outside.add(error.layer)  # it would fail outside the parts of any other choice, too
            continue
        if memory_limit is None:
            grid = Grid(shape[2:], plan.stride, edge or shape[2:], plan.least)
            if needed > peak_of_tile(model, shape, like, plan, grid, names):
                continue
        yield names, plan


def _operations_of_rank(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    names: tuple[str, ...],
    num_ranks: int,
) -> int:
    """Count the operations of a rank with one tile, and of the parts that it runs whole."""
    edge = edge_of_ranks(shape[2:], plan, num_ranks)
    window = Grid(shape[2:], plan.stride, edge, plan.least).largest(plan.widest_halo())
    whole = tuple((0, n) for n in shape[2:])
    tile = _operations(model, shape, like, plan, window, names)
    parts = _operations(model, shape, like, plan, whole, ())
    return tile + parts - _operations(model, shape, like, plan, whole, names)


def choose_edge(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    whole: tuple[str, ...],
    memory_limit: int,
) -> Edge:
    """Return the largest tile whose peak memory stays within the limit."""

    def edge(strides: int) -> Edge:
        return tuple(min(n, s * strides) for n, s in zip(shape[2:], plan.stride, strict=True))

    def fits(strides: int) -> bool:
        grid = Grid(shape[2:], plan.stride, edge(strides), plan.least)
        return peak_of_tile(model, shape, like, plan, grid, whole) <= memory_limit

    least, most = 1, max(-(-n // s) for n, s in zip(shape[2:], plan.stride, strict=True))
    if not fits(least):
        grid = Grid(shape[2:], plan.stride, edge(1), plan.least)
        needed = peak_of_tile(model, shape, like, plan, grid, whole)
        raise ValueError(
            f"memory_limit must hold the smallest tile with its halo, {needed} bytes, "
            f"got {memory_limit}"
        )
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return edge(least)


def edge_of_ranks(size: Sequence[int], plan: Plan, num_ranks: int) -> Edge:
    """Return the edges of which the fewest pixels run in the largest tile, a tile for every rank."""
    best: tuple[float, Edge] | None = None
    for counts in _factors(num_ranks, len(size)):
        pairs = zip(size, counts, plan.stride, strict=True)
        edge = tuple(-(-n // (k * s)) * s for n, k, s in pairs)
        largest = Grid(tuple(size), plan.stride, edge, plan.least).largest(plan.output_halo())
        pixels = math.prod(stop - start for start, stop in largest)
        if best is None or pixels < best[0]:
            best = pixels, edge
    assert best is not None
    return best[1]


def _factors(most: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yield numbers whose product is `most` or somewhat less."""
    if count == 1:
        yield (most,)
        return
    for first in range(1, most + 1):
        for others in _factors(most // first, count - 1):
            yield first, *others


def peak_of_whole(model: nn.Module, shape: tuple[int, ...], like: Tensor) -> int:
    """Return the peak bytes of tensors while the whole input runs, counted without running it."""

    call = with_passed(model, shape[0])

    def run() -> None:
        call(torch.empty(shape, dtype=like.dtype, device=like.device))

    return _peak_without_memory(model, run)


def peak_of_tile(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    grid: Grid,
    whole: tuple[str, ...],
) -> int:
    """Return the peak bytes of tensors while the largest tile runs, counted without running it."""
    return _bytes_of_tile(model, shape, like, plan, grid.largest(plan.output_halo()), whole)[0]


def edge_in_step(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    whole: tuple[str, ...],
    edge: Edge,
    memory_limit: int | None,
    num_ranks: int,
    smaller: bool,
) -> Edge | None:
    """Return this edge if all tiles of a rank fit into memory in step.

    Without a limit, they may take 256 MiB, or twice the memory of one tile if that is more. Else None;
    or, if `smaller` edges are allowed, half of it and so on, as long as their halos cost less than the
    passes over tiles of this edge.
    """
    size, halo = tuple(shape[2:]), plan.widest_halo()
    most = _pixels(Grid(size, plan.stride, edge, plan.least), plan) * (1 + plan.num_sites()) / 2
    while True:
        grid = Grid(size, plan.stride, edge, plan.least)
        tiles = math.ceil(len(grid) / num_ranks)
        if tiles > MOST_IN_STEP or _pixels(grid, plan) > most:
            return None
        peak, waiting = _bytes_of_tile(model, shape, like, plan, grid.largest(halo), whole)
        limit = max(SMALL_IN_STEP, 2 * peak) if memory_limit is None else memory_limit
        if peak + (tiles - 1) * waiting <= limit:
            return edge
        if not smaller or all(n <= s for n, s in zip(edge, plan.stride, strict=True)):
            return None
        edge = tuple(max(s, n // 2) for n, s in zip(edge, plan.stride, strict=True))


def _pixels(grid: Grid, plan: Plan) -> int:
    """Return the pixels of all tiles with their halos."""
    tiles = grid.tiles(plan.output_halo())
    return sum(math.prod(stop - start for start, stop in tile.wide) for tile in tiles)


def _bytes_of_tile(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    window: tuple[tuple[int, int], ...],
    whole: tuple[str, ...],
) -> tuple[int, int]:
    """Return the peak bytes of tensors while a tile runs, and the most while it is at a site."""
    waiting = 0

    def at_site() -> None:
        nonlocal waiting
        waiting = max(waiting, live.live)

    with without_values(model), LiveStorages(of_shapes=True) as live:
        _run_tile(model, shape, like, plan, window, whole, at_site)
    return live.peak, waiting


def _operations(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    window: tuple[tuple[int, int], ...],
    whole: tuple[str, ...],
) -> int:
    """Count the operations of a tile without those of the parts."""
    with without_values(model):
        return count_flops(lambda: _run_tile(model, shape, like, plan, window, whole))


def _run_tile(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    window: tuple[tuple[int, int], ...],
    whole: tuple[str, ...],
    at_site: Callable[[], None] = lambda: None,
) -> None:
    """Run the model on a tile, with arbitrary results of the parts."""

    def given(number: int, site: Site) -> Tensor:
        place = plan.sites[number] if number < len(plan.sites) else None
        if place is not None:
            at_site()
        if not isinstance(site, Part) or place is None or place.result is None:
            return constants(number, site)
        size = list(place.result_shape)
        size[0] = shape[0]
        for line, (start, stop), end in zip(place.result, window, shape[2:], strict=True):
            size[line.dim] = line.length(start, stop, end)
        return site.x.new_empty(size)

    size = (stop - start for start, stop in window)
    x = torch.empty(*shape[:2], *size, dtype=like.dtype, device=like.device)
    call = with_passed(model, shape[0])
    with Interception(submodules(model, whole), given):
        call(x)


def _bytes_whole(model: nn.Module, names: tuple[str, ...], lengths: Lengths, batch: int) -> int:
    """Return the bytes for the results of these parts and for the part that needs the most."""
    kept, most = 0, 0
    for call in lengths.run.calls:
        if call.name not in names or call.x is None or call.y is None or call.others is None:
            continue
        part, (known, *size), like = model.get_submodule(call.name), call.x.shape, call.x
        others = call.others

        def run(
            part: nn.Module = part,
            known: int = known,
            size: Sequence[int] = size,
            like: Tensor = like,
            others: Others = others,
        ) -> None:
            vectors = [
                v.new_empty(batch, *v.shape[1:]) if is_batched(v, known) else v.new_empty(v.shape)
                for v in others.vectors()
            ]
            x = torch.empty(batch, *size, dtype=like.dtype, device=like.device)
            others.replaced(vectors).call(part, x)

        kept += batch * call.y.numel() * call.y.element_size()
        most = max(most, _peak_without_memory(model, run))
    return kept + most


def _peak_without_memory(model: nn.Module, run: Callable[[], None]) -> int:
    with without_values(model):
        return peak_tensor_bytes(run, of_shapes=True)


@contextmanager
def without_values(model: nn.Module) -> Iterator[None]:
    """Let the model run on tensors that have shapes only, for counting."""
    with (
        _disable_current_modes(),  # counters of operations or memory should not count it
        torch.no_grad(),
        statistics_kept(model),
        without_memory(model),
        without_cached_features(model),
    ):
        yield


def candidates(model: nn.Module, lengths: Lengths) -> dict[str, Fraction]:
    """Return the submodules that could run whole, with the resolution of their inputs and results.

    It is given as the number of input positions per position.
    """
    found: dict[str, Fraction] = {}
    excluded = {call.name for call in lengths.run.calls if not call.alone}
    excluded |= {name for name, m in model.named_modules() if type(m).__module__ in POINTWISE}
    for call, *ends in lengths.calls():
        coarseness = min(_coarseness(lines) for lines in ends)
        if coarseness < 2:
            excluded.add(call.name)
        found[call.name] = min(coarseness, found.get(call.name, coarseness))
    return {name: coarseness for name, coarseness in found.items() if name not in excluded}


def choices_of(calls: Mapping[str, Fraction]) -> list[tuple[str, ...]]:
    """Return the sets of outermost candidates at a resolution or below it, shallowest first."""
    choices = (
        outermost([name for name, c in calls.items() if c >= coarseness])
        for coarseness in sorted(set(calls.values()))
    )
    return list(dict.fromkeys(choices))


def contain(names: Sequence[str], layers: Iterable[str]) -> bool:
    """Return whether every one of these layers is inside one of these parts."""
    return all(any(is_inside(layer, name) for name in names) for layer in layers)


def _coarseness(lines: Lines | None) -> Fraction:
    """Return the input positions per position of a tensor; 0 if it does not follow the input."""
    if lines is None:
        return Fraction(0)
    return math.prod((line.resolution for line in lines), start=Fraction(1))
