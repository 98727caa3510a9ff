"""Choose plan, tiles and parts run whole for the user's options and one input size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from neurenix_ms._core.checks import check_sequence, check_text
from neurenix_ms.execution.compiled import uncompiled
from neurenix_ms.execution.plan.arguments import kinds_passed, passed
from neurenix_ms.execution.plan.cache import cached
from neurenix_ms.execution.plan.choice import (
    Edge,
    choose_edge,
    choose_parts,
    edge_in_step,
    edge_of_ranks,
    peak_of_whole,
)
from neurenix_ms.execution.plan.footprint import (
    SIZES_TO_TRY,
    Plan,
    like_parameters,
    make_plan,
    taken_size,
)
from neurenix_ms.execution.plan.grid import Grid
from neurenix_ms.execution.plan.sharing import SharedPart, outermost, shared_parts
from neurenix_ms.execution.plan.sharing_choice import choose_shared
from neurenix_ms.execution.plan.sites import submodules
from neurenix_ms.execution.progress import search_for_a_plan
from neurenix_ms.execution.run.arrays import check_array, dtype_of
from neurenix_ms.execution.run.in_step import InStep
from neurenix_ms.execution.run.passes import Passes
from neurenix_ms.execution.run.ranks import Ranks, checksum, sample_of, sums_of
from neurenix_ms.execution.run.refusals import check_plain_parallelism

TileSize = int | Sequence[int] | Literal["auto"]
Whole = Literal["auto"] | Sequence[str]
Schedule = Literal["auto", "passes", "in_step"]
EARLY_SIZES = {1: 256, 2: 256, 3: 64}


@dataclass(frozen=True)
class Setting:
    """Plan, tiles, parts and schedule, for inputs of one size.

    `whole` names the parts in the plan. Those in `shared`, by the number of their site, do not run
    whole: every rank runs them on its own window.
    """

    plan: Plan
    grid: Grid
    whole: tuple[str, ...]
    in_step: bool
    shared: tuple[tuple[int, SharedPart], ...] = ()

    def num_sites(self) -> int:
        """Return how often tiles are run, or continued, before the result is computed."""
        return self.plan.num_sites()

    def run(
        self, model: nn.Module, x: Any, like: Tensor, step: Callable[[], None], ranks: Ranks
    ) -> Passes | InStep:
        """Return the run of a model over the tiles of one input."""
        given = model, x, self.plan, self.grid, self.whole, like, step, ranks
        return InStep(*given, shared=self.shared) if self.in_step else Passes(*given)


def settle_early(
    model: nn.Module,
    in_channels: int,
    spatial_dims: int,
    whole: Whole,
    memory_limit: int | None,
    shared: Sequence[str] = (),
) -> None:
    """Raise if the model cannot run in tiles, before there is an input."""
    like = like_parameters(model)
    with uncompiled(), search_for_a_plan(model):
        sizes = (EARLY_SIZES[spatial_dims], *SIZES_TO_TRY)
        size = taken_size(model, in_channels, spatial_dims, like, sizes)
        settle(model, (1, in_channels, *size), like, 1, whole, memory_limit, shared=shared)


def settle(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    tile_size: TileSize,
    whole: Whole,
    memory_limit: int | None,
    num_ranks: int = 1,
    schedule: Schedule = "auto",
    training: bool = False,
    shared: Sequence[str] = (),
) -> Setting | None:
    """Return the setting for inputs of this shape; None if one tile covers the input.

    It is cached until the model changes.
    """
    whole = whole if isinstance(whole, str) else tuple(whole)
    tile_size = tile_size if isinstance(tile_size, (int, str)) else tuple(tile_size)
    if shared and isinstance(whole, str):
        whole = ()
    options = _Options(tile_size, whole, memory_limit, num_ranks, schedule, training, tuple(shared))
    question = "setting", shape, like.dtype, like.device, options, kinds_passed()
    with search_for_a_plan(model):
        return cached(model, question, lambda: _settled(model, shape, like, options))


@dataclass(frozen=True)
class _Options:
    tile_size: int | tuple[int, ...] | str
    whole: tuple[str, ...] | str
    memory_limit: int | None
    num_ranks: int
    schedule: Schedule
    training: bool
    shared: tuple[str, ...]

    def limits_tiles(self) -> bool:
        """Return whether the size of tiles is chosen by memory."""
        return isinstance(self.tile_size, str) and self.memory_limit is not None

    def may_share(self) -> bool:
        """Return whether ranks with a tile each may share parts that are chosen here."""
        chosen = isinstance(self.whole, str) and self.memory_limit is None
        return chosen and self.num_ranks > 1 and self.schedule != "passes"

    def may_take_all(self) -> bool:
        """Return whether the whole input is a choice of a tile."""
        one = self.num_ranks == 1 and not self.training
        return one and self.limits_tiles() and isinstance(self.whole, str)


def _settled(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, options: _Options
) -> Setting | None:
    size, limit = options.tile_size, options.memory_limit
    edge = None if isinstance(size, str) else edges(size, len(shape) - 2)
    if edge is not None and all(e >= n for e, n in zip(edge, shape[2:], strict=True)):
        return None
    if options.may_take_all() and peak_of_whole(model, shape, like) <= (limit or 0):
        return None  # also of models that cannot run in tiles
    if options.may_share():
        choice = choose_shared(model, shape, like, edge, options.num_ranks)
        if choice is not None:
            edge = edge or edge_of_ranks(shape[2:], choice.plan, options.num_ranks)
            grid = Grid(tuple(shape[2:]), choice.plan.stride, edge, choice.plan.least)
            return Setting(choice.plan, grid, choice.names, True, choice.shared)
    if isinstance(options.whole, str):
        ranks = 1 if options.schedule == "passes" else options.num_ranks
        names = choose_parts(model, shape, like, edge, limit, ranks)
    else:
        names = outermost([*options.shared, *options.whole]) if options.shared else options.whole
    plan = make_plan(model, shape, like, names, limit)
    if limit is not None and options.limits_tiles():
        edge = choose_edge(model, shape, like, plan, names, limit)
    elif edge is None:
        edge = edge_of_ranks(shape[2:], plan, options.num_ranks)
    in_step = _edge_in_step(model, shape, like, plan, names, edge, options)
    grid = Grid(tuple(shape[2:]), plan.stride, in_step or edge, plan.least)
    if len(grid) == 1 and not names:
        return None
    shared: tuple[tuple[int, SharedPart], ...] = ()
    if options.shared and in_step is not None and 1 < len(grid) <= options.num_ranks:
        parts = options.shared, options.whole
        shared = shared_parts(model, plan, shape[2:], like, *parts)
    return Setting(plan, grid, names, in_step is not None, shared)


def _edge_in_step(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    plan: Plan,
    names: tuple[str, ...],
    edge: Edge,
    options: _Options,
) -> Edge | None:
    """Return the edge of tiles that run in step, or None where passes are better."""
    num_tiles = len(Grid(tuple(shape[2:]), plan.stride, edge, plan.least))
    if options.schedule == "passes" or plan.num_sites() == 0:
        return None
    smaller = options.limits_tiles()
    if not smaller:
        if options.schedule == "in_step" or 1 < options.num_ranks >= num_tiles:
            return edge
        if options.training:  # in step, the graph is that of the whole input
            return None
    limits = options.memory_limit, options.num_ranks, smaller
    found = edge_in_step(model, shape, like, plan, names, edge, *limits)
    if found is None and options.schedule == "in_step":
        raise ValueError(
            "memory_limit must hold a tile and what all other tiles keep at a site, got "
            f"{options.memory_limit}; raise it, or pass schedule='passes'"
        )
    return found


def check_same_calls(
    ranks: Ranks, model: nn.Module, x: Any, setting: Setting | None, **others: Any
) -> None:
    """Raise if the ranks were called with different models or inputs.

    Of the values of parameters, buffers and inputs, sums and samples are compared.
    """
    if ranks.size == 1:
        return
    state = [*model.named_parameters(), *model.named_buffers()]
    facts = {
        "class of model": type(model).__name__,
        "training mode": checksum([m.training for m in model.modules()]),
        "names and shapes of parameters": checksum(
            [(n, tuple(t.shape), t.dtype) for n, t in state]
        ),
        "requires_grad of parameters": checksum([t.requires_grad for _, t in state]),
        "shape of x": tuple(x.shape),
        "tile_size and parts run whole": setting and (setting.grid.edge, setting.whole),
        "schedule": setting and ("in_step" if setting.in_step else "passes"),
        "plan": checksum(setting and (setting.plan, setting.grid, setting.shared)),
        "values of parameters and buffers": sums_of([t for _, t in state]),
        "values of x": sample_of(x),
        "args": checksum([v.tolist() if isinstance(v, Tensor) else v for v in passed(x.shape[0])]),
    }
    ranks.compare(facts | others)


def edges(tile_size: int | Sequence[int], spatial_dims: int) -> Edge:
    """Return one edge length per axis."""
    return (tile_size,) * spatial_dims if isinstance(tile_size, int) else tuple(tile_size)


def check_choices(
    model: nn.Module,
    tile_size: TileSize,
    whole: Whole,
    spatial_dims: int,
    memory_limit: int | None,
    mesh: DeviceMesh | None = None,
) -> Whole:
    """Raise if an option is invalid for every input; return the parts as a tuple of names."""
    if isinstance(tile_size, str):
        if memory_limit is None and mesh is None:
            raise ValueError(
                "tile_size must be an edge length, one per axis, or 'auto' together with memory_limit "
                f"or mesh, got {tile_size!r} and memory_limit {memory_limit}"
            )
    else:
        sizes = edges(tile_size, spatial_dims)
        if len(sizes) != spatial_dims or min(sizes) < 1:
            raise ValueError(
                f"tile_size must be at least 1 along each of {spatial_dims} axes, got {tile_size}"
            )
    check_plain_parallelism(model)
    if memory_limit is not None and memory_limit < 1:
        raise ValueError(f"memory_limit must be at least 1 byte, got {memory_limit}")
    if isinstance(whole, str):
        if whole != "auto":
            raise ValueError(f"whole must be 'auto' or names of submodules, got {whole!r}")
        return "auto"
    return check_names(model, "whole", whole)


def check_names(model: nn.Module, argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of submodules as a tuple, or raise."""
    names = check_sequence(argument, names, "names of submodules")
    names = [check_text(f"{argument}[{i}]", name) for i, name in enumerate(names)]
    submodules(model, tuple(names), argument)
    return tuple(names)


def check_rank_of(
    x: Any, spatial_dims: int | None, model: nn.Module
) -> tuple[tuple[int, ...], Tensor]:
    """Return the shape of an input, and an empty tensor with the dtype and device of its tiles."""
    like = like_parameters(model, dtype_of(x))
    check_array("x", x, like.dtype)
    shape = tuple(int(n) for n in x.shape)
    wrong = spatial_dims is not None and len(shape) != spatial_dims + 2
    if wrong or len(shape) not in (3, 4, 5) or min(shape) < 1:
        axes = "one to three" if spatial_dims is None else spatial_dims
        raise ValueError(
            f"expected (B, C) and {axes} spatial axes, none of them empty, got {shape}"
        )
    return shape, like
