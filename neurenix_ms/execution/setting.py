"""What a user asks for in; plan, tiles and parts for maps of one size out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from neurenix_ms.execution.choice import Edge, choose_edge, choose_parts
from neurenix_ms.execution.footprint import (
    Plan,
    like_parameters,
    make_plan,
)
from neurenix_ms.execution.grid import Grid
from neurenix_ms.execution.passes import Passes
from neurenix_ms.execution.plans import kept
from neurenix_ms.execution.progress import search_for_a_plan
from neurenix_ms.execution.sites import submodules

TileSize = int | Sequence[int] | Literal["auto"]
Whole = Literal["auto"] | Sequence[str]


@dataclass(frozen=True)
class Setting:
    """How a model runs on maps of one size."""

    plan: Plan
    grid: Grid
    whole: tuple[str, ...]

    def num_sites(self) -> int:
        """Passes over the tiles before the one that makes the result."""
        return sum(place is not None for place in self.plan.sites)

    def passes(self, model: nn.Module, x: Any, like: Tensor, step: Callable[[], None]) -> Passes:
        """The passes over one map."""
        return Passes(model, x, self.plan, self.grid, self.whole, like, step)


def settle(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    tile_size: TileSize,
    whole: Whole,
    memory_limit: int | None,
) -> Setting | None:
    """The setting for maps of this shape; None where one tile holds the map.

    It is kept as long as the model stays as it is.
    """
    whole = whole if isinstance(whole, str) else tuple(whole)
    tile_size = tile_size if isinstance(tile_size, (int, str)) else tuple(tile_size)
    question = ("setting", shape, like.dtype, like.device, tile_size, whole, memory_limit)
    with search_for_a_plan(model):
        return kept(
            model, question, lambda: _settled(model, shape, like, tile_size, whole, memory_limit)
        )


def _settled(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    tile_size: TileSize,
    whole: Whole,
    memory_limit: int | None,
) -> Setting | None:
    asked = None if isinstance(tile_size, str) else edges(tile_size, len(shape) - 2)
    if asked is not None and all(e >= n for e, n in zip(asked, shape[2:], strict=True)):
        return None
    if isinstance(whole, str):
        names = choose_parts(model, shape, like, asked, memory_limit)
    else:
        names = tuple(whole)
    plan = make_plan(model, shape, like, names)
    if asked is None:
        asked = choose_edge(model, shape, like, plan, names, cast(int, memory_limit))
    grid = Grid(tuple(shape[2:]), plan.stride, asked, plan.least)
    return None if len(grid) == 1 and not names else Setting(plan, grid, names)


def edges(tile_size: int | Sequence[int], spatial_dims: int) -> Edge:
    """One edge per axis."""
    return (tile_size,) * spatial_dims if isinstance(tile_size, int) else tuple(tile_size)


def expect_asked(
    model: nn.Module,
    tile_size: TileSize,
    whole: Whole,
    spatial_dims: int,
    memory_limit: int | None,
) -> None:
    """Refuse what no map could be run with."""
    if isinstance(tile_size, str):
        if tile_size != "auto" or memory_limit is None:
            raise ValueError(
                "tile_size must be cells, cells per axis, or 'auto' together with memory_limit, "
                f"got {tile_size!r} and memory_limit {memory_limit}"
            )
    else:
        sizes = edges(tile_size, spatial_dims)
        if len(sizes) != spatial_dims or min(sizes) < 1:
            raise ValueError(
                f"tile_size must be at least 1 along each of {spatial_dims} axes, got {tile_size}"
            )
    if memory_limit is not None and memory_limit < 1:
        raise ValueError(f"memory_limit must be at least 1 byte, got {memory_limit}")
    if isinstance(whole, str):
        if whole != "auto":
            raise ValueError(f"whole must be 'auto' or names of submodules, got {whole!r}")
    else:
        submodules(model, tuple(whole))


def expect_map_of(x: Any, spatial_dims: int, model: nn.Module) -> tuple[tuple[int, ...], Tensor]:
    """The shape of a map, and what tiles of it are like."""
    shape = tuple(int(n) for n in getattr(x, "shape", ()))
    if len(shape) != spatial_dims + 2 or min(shape) < 1:
        raise ValueError(
            f"expected (B, C) and {spatial_dims} spatial axes, none of them empty, got "
            f"{shape or type(x).__name__}"
        )
    like = like_parameters(model)
    return shape, like.to(x.dtype) if isinstance(x, Tensor) else like
