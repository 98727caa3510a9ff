"""The tiles of an input, and one call of a model on a tile."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from neurenix_ms._core.inplace import call_intact, protected
from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.execution.plan.arguments import Others, passed
from neurenix_ms.execution.plan.footprint import Place, Plan
from neurenix_ms.execution.plan.grid import Grid, Tile
from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.plan.reach import Halo
from neurenix_ms.execution.plan.sites import (
    Interception,
    Part,
    Visit,
    submodules,
    without_cached_features,
)
from neurenix_ms.execution.run.arrays import read
from neurenix_ms.execution.run.ranks import Index, OneProcess, Ranks


def in_one_piece(model: nn.Module, x: Any, like: Tensor, ranks: Ranks) -> Any:
    """Return the result of the model where one tile holds the input.

    Every rank runs it, and takes result and buffers of rank 0.
    """
    if ranks.size == 1:
        return call_intact(model, read(x, (slice(None),), like), *passed(x.shape[0]))
    with Buffers(model, {}).kept():
        y = call_intact(model, read(x, (slice(None),), like), *passed(x.shape[0]))
        leaves, structure = tree_flatten(y)
        leaves = ranks.same(leaves)
        buffers = list(model.buffers())
        for buffer, value in zip(buffers, ranks.same(buffers), strict=True):
            buffer.copy_(value)
    return tree_unflatten(leaves, structure)


class TiledRun:
    """A model on the tiles of one input. Subclasses say in which order the tiles run.

    Args:
        model: Any module.
        x: The input: a tensor, or an array that can be sliced.
        plan: Strides, halos and sites of the model.
        grid: Tiles of the input.
        whole: Names of the parts run whole.
        like: A tensor with the dtype and device in which tiles run.
        progress: Called after every tile.
        ranks: The processes that share the tiles; None is this one alone.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        plan: Plan,
        grid: Grid,
        whole: tuple[str, ...],
        like: Tensor,
        progress: Callable[[], None] = lambda: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.x = x
        self.plan = plan
        self.grid = grid
        self.parts = submodules(model, whole)
        self.like = like
        self.progress = progress
        self.ranks: Ranks = OneProcess() if ranks is None else ranks
        self.buffers = Buffers(model, self.parts)

    def tiles(self, halo: Sequence[Halo]) -> list[tuple[int, Tile]]:
        """Return the tiles that this rank runs, with their numbers."""
        shares = self.ranks.shares(list(self.grid.tiles(halo)))
        return list(enumerate(shares[self.ranks.rank], sum(map(len, shares[: self.ranks.rank]))))

    def pieces(self, lines: Lines) -> list[list[Index]]:
        """Return, for every rank, where its cores lie in a whole tensor."""
        shares = self.ranks.shares(list(self.grid.tiles(self.plan.output_halo())))
        return [[tile.core_of_whole(lines) for tile in share] for share in shares]

    def assembled(self, number: int, cores: Iterable[tuple[Tile, Tensor]]) -> Tensor:
        """Return the whole input of a site, of which the cores of all ranks are the pieces."""
        lines = self.plan.place(number).lines
        return assembled(cores, lines, self.grid.size, self.pieces(lines), self.ranks)

    def lines_of_result(self, number: int, result: Tensor) -> Lines:
        """Return the layout of a part's result; raise if the result has another."""
        return lines_of_result(self.plan.place(number), self.grid.size, result)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Update the model's buffers once, however often tiles run, and not at all on failure."""
        with (
            enable_gradient_checkpointing(False),
            without_cached_features(self.model),
            self.buffers.kept(),
        ):
            yield

    def call(self, tile: Tile, visit: Visit) -> Any:
        """Run the model on a tile, with the results of sites from `visit`."""
        window = (slice(None), slice(None), *tile.window())
        further = passed(self.x.shape[0])
        with Interception(self.parts, visit):
            # it may overwrite its input
            return self.model(read(self.x, window, self.like, own=True), *protected(further))

    def cores(self, tile: Tile, result: Any) -> tuple[list[Tensor], Any]:
        """Return the cores of all outputs, and the structure in which the model returned them."""
        leaves, structure = tree_flatten(result)
        if len(leaves) != len(self.plan.outputs):
            raise self.other_calls(len(self.plan.sites))
        places = zip(leaves, self.plan.outputs, strict=True)
        return [y[tile.core_of_tile(place.lines)] for y, place in places], structure

    def other_calls(self, number: int) -> ValueError:
        return ValueError(
            f"a model run in tiles must make the same calls in every tile, got another at {number}; "
            "the model, or its mode, may have changed while it ran"
        )


class Buffers:
    """Buffers of a model outside the parts run whole, reset before every tile and updated once."""

    def __init__(self, model: nn.Module, parts: dict[str, nn.Module]) -> None:
        self.model = model
        inside = {id(m) for part in parts.values() for m in part.modules()}
        self.owners = [m for m in model.modules() if id(m) not in inside and m._buffers]
        self.after: list[Tensor] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore all buffers on failure, inside the parts as well."""
        before = {name: b.clone() for name, b in self.model.named_buffers()}
        self.start = [(m, name, b, b.clone(), b._version) for m, name, b in self._all()]
        try:
            yield
        except BaseException:
            self.restore()
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(before[name])
            raise
        if self.after is not None:
            with torch.no_grad():
                for (_, _, buffer, _, _), value in zip(self.start, self.after, strict=True):
                    buffer.copy_(value)

    def restore(self) -> None:
        """Reset the buffers to their values before the first tile."""
        for module, name, buffer, value, version in self.start:
            if module._buffers[name] is not buffer or buffer._version != version:
                module._buffers[name] = buffer
                with torch.no_grad():
                    buffer.copy_(value)

    def moved(self) -> None:
        """Save the values after one run of the whole model as the final ones."""
        now = (m._buffers[name] for m, name, _, _, _ in self.start)
        self.after = [b.clone() for b in now if b is not None]
        self.restore()

    def _all(self) -> list[tuple[nn.Module, str, Tensor]]:
        return [
            (m, name, b) for m in self.owners for name, b in m._buffers.items() if b is not None
        ]


def assembled(
    cores: Iterable[tuple[Tile, Tensor]],
    lines: Lines,
    size: tuple[int, ...],
    pieces: Sequence[Sequence[Index]],
    ranks: Ranks,
) -> Tensor:
    """Return a whole feature map, of which every rank has cores.

    Args:
        cores: Those of this rank.
        lines: Layout of the feature map.
        size: Of the input that lines refer to.
        pieces: Where the cores of every rank lie.
        ranks: The processes that share the tiles.
    """
    whole: Tensor | None = None
    for tile, core in cores:
        if whole is None:
            whole = core.new_empty(whole_shape(core, lines, size))
        whole[tile.core_of_whole(lines)] = core
        del core
    assert whole is not None
    ranks.complete(whole, pieces)
    return whole


def lines_of_result(place: Place, size: tuple[int, ...], result: Tensor) -> Lines:
    """Return the layout of the result of a part run whole; raise if the result has another."""
    assert place.result is not None
    length = [line.length(0, n, n) for line, n in zip(place.result, size, strict=True)]
    came = [result.shape[line.dim] for line in place.result]
    if came != length:
        raise ValueError(
            "a part run whole must return sizes proportional to those of the input, got "
            f"{came} instead of {length} from {place.layer!r}; leave it out of whole=(...)"
        )
    return place.result


def whole_shape(core: Tensor, lines: Any, size: tuple[int, ...]) -> list[int]:
    """Return the shape of the whole tensor of which `core` is a part."""
    shape = list(core.shape)
    for line, n in zip(lines, size, strict=True):
        shape[line.dim] = line.length(0, n, n)
    return shape


def check_equal_vectors(others: Others, part: Part) -> None:
    """Raise unless a part is called with the same vectors as in another tile."""
    if not others.equal(part.others):
        raise ValueError(
            "a part run whole must be called with the same vectors in every tile, got ones that "
            f"depend on the input for {part.name!r}; leave it out of whole=(...)"
        )
