"""Choose the parts that ranks share, by the length of their cores and by operations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.arguments import with_passed
from neurenix_ms.execution.plan.choice import (
    Edge,
    candidates,
    choices_of,
    contain,
    edge_of_ranks,
    without_values,
)
from neurenix_ms.execution.plan.footprint import Place, Plan, make_plan
from neurenix_ms.execution.plan.grid import Grid, Tile
from neurenix_ms.execution.plan.layer_errors import LayerError, SizeError
from neurenix_ms.execution.plan.lengths import measure_lengths
from neurenix_ms.execution.plan.requirements import uneven_resizing
from neurenix_ms.execution.plan.sharing import (
    SharedPart,
    check_layout,
    check_shareable,
    input_size,
    is_empty,
    passing_of,
)
from neurenix_ms.meter import count_flops

CHEAP = 0.1  # operations that all ranks repeat together, relative to those of the whole model


@dataclass(frozen=True)
class Choice:
    """Names of the parts of a model, its plan, its tiles on all ranks, and which parts are shared."""

    names: tuple[str, ...]
    plan: Plan
    tiles: Sequence[Tile]
    shared: tuple[tuple[int, SharedPart], ...]


def choose_shared(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, edge: Edge | None, num_ranks: int
) -> Choice | None:
    """Return parts at half the resolution or less of which every expensive one can be shared.

    The shallowest are taken, and within them the same again, so that every level has the halo of its own
    layers only. A part runs whole on every rank where its operations, on all ranks together, are less
    than a tenth of those of the model.

    Args:
        model: The model.
        shape: Of its input.
        like: A tensor with the dtype and device of its input.
        edge: Of the tiles; None is one tile per rank.
        num_ranks: Number of ranks.

    Returns:
        The choice; None if there is no such choice, or if there are more tiles than ranks.
    """

    def tiles(plan: Plan) -> list[Tile] | None:
        edges = edge or edge_of_ranks(shape[2:], plan, num_ranks)
        grid = Grid(tuple(shape[2:]), plan.stride, edges, plan.least)
        found = list(grid.tiles(plan.widest_halo()))
        return found if 1 < len(found) <= num_ranks else None

    most = CHEAP * _operations(model, shape[1], shape[2:], like) / num_ranks
    return _choice(model, shape[1], shape[2:], like, tiles, most)


def _choice(
    model: nn.Module,
    channels: int,
    size: Sequence[int],
    like: Tensor,
    tiles_of: Callable[[Plan], Sequence[Tile] | None],
    most: float,
    cut: bool = False,
) -> Choice | None:
    """Return the parts inside a model, or a shared part, which may be `cut` without parts inside."""
    shape = (1, channels, *size)
    for names, plan in _plans(model, shape, like, cut):
        tiles = tiles_of(plan)
        if tiles is None:
            return None  # of deeper parts, the halo is wider
        shared = []
        for number, place in enumerate(plan.sites):
            if place is None or place.result is None:
                continue
            part = _shared(model, place, size, like, tiles, most)
            if part is not None:
                shared.append((number, part))
            elif not _is_cheap(model, place, size, like, most):
                break
        else:
            if cut or shared:
                return Choice(names, plan, tiles, tuple(shared))
    return None


def _plans(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, cut: bool
) -> Iterator[tuple[tuple[str, ...], Plan]]:
    """Yield the choices of parts with which the rest of the model runs in tiles, shallowest first."""
    with torch.inference_mode(False):  # inference tensors have no version counter
        lengths = measure_lengths(model, shape, like, {})
    calls = candidates(model, lengths)
    outside = {seen.layer for seen, _ in uneven_resizing(lengths)}
    for names in [*choices_of(calls), *([()] if cut else [])]:
        if contain(names, outside):
            try:
                yield names, make_plan(model, shape, like, names)
            except LayerError as error:
                if not isinstance(error, SizeError):
                    outside.add(error.layer)  # it would fail outside the parts of any other choice
            except ValueError:
                continue


def _shared(
    model: nn.Module,
    place: Place,
    size: Sequence[int],
    like: Tensor,
    tiles: Sequence[Tile],
    most: float,
) -> SharedPart | None:
    """Return the plan of a part that can be shared, with cores no shorter than its halo."""
    here = input_size(place, size)
    part = model.get_submodule(place.layer)

    def inner_tiles(plan: Plan) -> list[Tile] | None:
        found = SharedPart(plan, here)
        cores = found.cores(tiles, place)
        busy = [core for core in cores if not is_empty(core)]
        long = all(
            stop - start >= max(halo) or (start, stop) == (0, n)
            for core in busy
            for (start, stop), halo, n in zip(core, plan.widest_halo(), here, strict=True)
        )
        return found.tiles(tiles, place) if long and len(busy) == len(tiles) else None

    try:
        check_shareable(place)
        with passing_of(place, like):
            choice = _choice(part, place.channels, here, like, inner_tiles, most, cut=True)
        if choice is None:
            return None
        check_layout(place, choice.plan, size)
    except ValueError:  # it cannot run in tiles
        return None
    return SharedPart(choice.plan, here, choice.names, choice.shared)


def _is_cheap(
    model: nn.Module, place: Place, size: Sequence[int], like: Tensor, most: float
) -> bool:
    """Return whether all ranks may run a part whole."""
    if place.further is None:
        return False
    part = model.get_submodule(place.layer)
    with passing_of(place, like):
        return _operations(part, place.channels, input_size(place, size), like) <= most


def _operations(model: nn.Module, channels: int, size: Sequence[int], like: Tensor) -> int:
    """Count the operations of a module on a whole input, without running it."""
    with without_values(model):
        x = torch.empty(1, channels, *size, dtype=like.dtype, device=like.device)
        call = with_passed(model, 1)
        return count_flops(lambda: call(x))
