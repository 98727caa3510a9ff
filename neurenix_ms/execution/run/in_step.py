"""Tiles in step: all tiles run as far as a site, meet there, and continue, so that nothing runs twice.

The first tile runs in the calling thread. Whenever it reaches a site, the others are brought to the same
site, one after the other; then moments are merged or a part is run, and the first tile continues. A
process with one tile has no others, and meets the tiles of other processes only.

There, parts can be shared: the tile gets its window of the part's input from the cores of all
processes, runs the part on it, with sites inside as those of the model, and gets its window of the
result in the same way.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.footprint import Place, Plan
from neurenix_ms.execution.plan.grid import Tile, index_of
from neurenix_ms.execution.plan.sharing import SharedPart
from neurenix_ms.execution.plan.sites import Interception, Part, Site, submodules
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run.attributes import Attributes
from neurenix_ms.execution.run.exchange import WindowExchange, exchanged
from neurenix_ms.execution.run.merged import (
    PartMeeting,
    merged_moments,
    normalized_together,
    run_together,
)
from neurenix_ms.execution.run.ranks import Index
from neurenix_ms.execution.run.suspended import Pause, Suspended
from neurenix_ms.execution.run.tiles import (
    Buffers,
    TiledRun,
    assembled,
    check_equal_vectors,
    lines_of_result,
)

Answer = Callable[[Any], Tensor]  # of a site to a tile
Met = list[tuple[Tile, Any]]  # all tiles of this process, and the same site in each


class InStep(TiledRun):
    """Forward passes over all tiles of a process, which meet at every site.

    The memory is that of one tile and of what the others keep at a site. In grad mode, results have a
    graph, and `token` must be added to the loss. Arguments as for `TiledRun`.

    Args:
        shared: Parts that are not run whole but shared, by the number of their site; with at most one
            tile per rank.
    """

    def __init__(
        self, *args: Any, shared: Sequence[tuple[int, SharedPart]] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.token = torch.zeros((), device=self.like.device, requires_grad=True)
        self.norms: list[tuple[Normalization, Moments]] = []
        self.others: list[_Other] = []
        self.last_site = -1
        tiles = self.ranks.shares(list(self.grid.tiles(self.plan.widest_halo())))
        self.top = _Level(self.plan, self.grid.size, tiles, self.parts, dict(shared))
        self.buffers = Buffers(self.model, self.top.run_whole())

    def results(self, skip: Container[int] = ()) -> Iterator[tuple[int, Tile, list[Tensor], Any]]:
        """Yield number and tile, and the cores of all outputs with their structure.

        Tiles in `skip` run as far as the last site.
        """
        tiles = self.tiles(self.plan.widest_halo())
        waiting = (i for i, (number, _) in enumerate(tiles) if number not in skip)
        first = next(waiting, 0)  # one runs in any case, since other ranks wait for it
        here = tiles.pop(first)
        self.others = [self._other(number, tile) for number, tile in tiles]

        def visit(number: int, site: Site) -> Tensor:
            if number >= len(self.plan.sites):
                raise self.other_calls(number)
            if self.plan.sites[number] is None:
                return site.plain()
            met: Met = [self._reached(other, number) for other in self.others]
            met.insert(first, (here[1], site))
            self.last_site = number
            self.progress()
            answers = self._answers(self.top, number, site, met)
            answer = answers.pop(first)
            for other, its in zip(self.others, answers, strict=True):
                other.answer = its
            return answer(site)

        result = self.call(here[1], visit)
        if self.last_site != max(self.plan.site_numbers(), default=-1):
            raise self.other_calls(len(self.plan.sites))
        if here[0] not in skip:
            yield *here, *self.cores(here[1], result)
            self.progress()
        del result
        for other in self.others:
            if other.number not in skip:
                yield other.number, other.tile, *self._finished(other)
                self.progress()
        self.buffers.moved()

    def move_running(self) -> None:
        """Update the running statistics of all normalizations, once."""
        for norm, moments in self.norms:
            norm.move_running(moments)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Likewise, and end the forward passes that wait at a site."""
        with super().running():
            try:
                yield
            finally:
                while self.others:
                    self.others.pop().close()

    def _other(self, number: int, tile: Tile) -> "_Other":
        def forward(pause: Pause) -> Any:
            def visit(number: int, site: Site) -> Tensor:
                if number < len(self.plan.sites) and self.plan.sites[number] is None:
                    return site.plain()
                answer: Answer = pause((number, site))
                return answer(site)

            return self.call(tile, visit)

        parts = list(self.parts.values())
        inside = {id(m) for part in parts for m in part.modules()} - set(map(id, parts))
        return _Other(number, tile, Attributes(self.model, inside), Suspended(forward))

    def _reached(self, other: "_Other", number: int) -> tuple[Tile, Site]:
        """Run another tile as far as a site."""
        reached = other.resume()
        if other.forward.finished or reached[0] != number:
            raise self.other_calls(number)
        self.progress()
        return other.tile, reached[1]

    def _finished(self, other: "_Other") -> tuple[list[Tensor], Any]:
        result = other.resume()
        if not other.forward.finished:
            raise self.other_calls(result[0])
        return self.cores(other.tile, result)

    def _answers(self, level: "_Level", number: int, site: Site, met: Met) -> list[Answer]:
        """Return what every tile computes of a site of the model, or of a shared part."""
        place = level.plan.place(number)
        if not isinstance(site, Part):
            return self._of_norm(place, met)
        if number in level.shared:
            (tile,) = (tile for tile, _ in met)
            return [_constant(self._of_shared_part(level, number, site, tile))]
        return self._of_part(level, place, site, met)

    def _of_norm(self, place: Place, met: Met) -> list[Answer]:
        norms: list[Normalization] = [norm for _, norm in met]
        cores = [tile.core_of_tile(place.lines) for tile, _ in met]
        moments = merged_moments(norms, cores, self.ranks)
        self.norms.append((norms[0].settings(), moments))
        if torch.is_grad_enabled():
            self.token, results = normalized_together(norms, cores, moments, self.ranks, self.token)
            return [_constant(result) for result in results]
        return [lambda norm: norm.normalized(moments.mean, moments.var)] * len(met)

    def _of_part(self, level: "_Level", place: Place, part: Part, met: Met) -> list[Answer]:
        tiles, ranks = [tile for tile, _ in met], self.ranks
        for _, other in met:
            check_equal_vectors(part.others, other)

        # without a reference to this object, whose token has a graph that refers to the function
        def whole(xs: Sequence[Tensor]) -> Tensor:
            pairs = zip(tiles, xs, strict=True)
            cores = ((tile, x[tile.core_of_tile(place.lines)]) for tile, x in pairs)
            return assembled(cores, place.lines, level.size, level.pieces(place), ranks)

        xs = [other.x for _, other in met]
        if torch.is_grad_enabled():
            assert place.result is not None
            layouts = place.lines, place.result
            check = partial(lines_of_result, place, level.size)
            meeting = PartMeeting(part, tiles, *layouts, whole, check, ranks)
            self.token, results = run_together(meeting, xs, self.token)
            return [_constant(result) for result in results]
        result = part.others.call(part.forward, whole(xs))
        lines = lines_of_result(place, level.size, result)

        def cropped(tile: Tile) -> Answer:
            return lambda _: result[tile.wide_of_whole(lines)].clone()

        return [cropped(tile) for tile in tiles]

    def _of_shared_part(self, level: "_Level", number: int, part: Part, tile: Tile) -> Tensor:
        """Run a part on the window of this rank, and return what its tile needs of the result."""
        place, inner = level.plan.place(number), level.inside(number)
        windows = [index_of(place.lines, one.window()) for one in inner.each()]
        x = self._exchanged(WindowExchange.between(level.each(), place.lines, windows), part.x)
        y = self._run(inner, part, x)
        del x
        assert place.result is not None
        windows = [one.wide_of_whole(place.result) for one in level.each()]
        (output,) = inner.plan.outputs
        return self._exchanged(WindowExchange.between(inner.each(), output.lines, windows), y)

    def _run(self, level: "_Level", part: Part, x: Tensor) -> Tensor:
        """Run a part on the window of this rank, with its sites."""
        tile, last = level.each()[self.ranks.rank], -1

        def visit(number: int, site: Site) -> Tensor:
            nonlocal last
            if number >= len(level.plan.sites):
                raise self.other_calls(number)
            if level.plan.sites[number] is None:
                return site.plain()
            last = number
            (answer,) = self._answers(level, number, site, [(tile, site)])
            return answer(site)

        with Interception(level.parts, visit):
            y: Tensor = part.others.call(part.forward, x)
        if last != max(level.plan.site_numbers(), default=-1):
            raise self.other_calls(len(level.plan.sites))
        return y

    def _exchanged(self, exchange: WindowExchange, x: Tensor) -> Tensor:
        self.token, window = exchanged(exchange, x, self.ranks, self.token)
        return window


@dataclass
class _Level:
    """The model, or a shared part, and its tiles on all ranks.

    Args:
        plan: Its plan.
        size: Of its whole input.
        tiles: Those of every rank.
        parts: Parts inside, by name.
        shared: Those that are shared, by the number of their site.
    """

    plan: Plan
    size: tuple[int, ...]
    tiles: Sequence[Sequence[Tile]]
    parts: dict[str, nn.Module]
    shared: dict[int, SharedPart]

    def each(self) -> list[Tile]:
        """Return the tile of every rank, where each has one."""
        return [tile for (tile,) in self.tiles]

    def pieces(self, place: Place) -> list[list[Index]]:
        """Return, for every rank, where its cores lie in the input of a site."""
        return [[tile.core_of_whole(place.lines) for tile in share] for share in self.tiles]

    def inside(self, number: int) -> "_Level":
        """Return the level of a shared part."""
        place, shared = self.plan.place(number), self.shared[number]
        tiles = [[tile] for tile in shared.tiles(self.each(), place)]
        parts = submodules(self.parts[place.layer], shared.parts)
        return _Level(shared.plan, shared.size, tiles, parts, dict(shared.shared))

    def run_whole(self) -> dict[str, nn.Module]:
        """Return the parts that run whole, here and inside shared parts."""
        shared = {self.plan.place(number).layer for number in self.shared}
        found = {name: part for name, part in self.parts.items() if name not in shared}
        for number in self.shared:
            name = self.plan.place(number).layer
            inside = self.inside(number).run_whole()
            found |= {f"{name}.{inner}": part for inner, part in inside.items()}
        return found


class _Other:
    """A forward pass over one tile, in a thread of its own, and its last answer."""

    def __init__(self, number: int, tile: Tile, attributes: Attributes, forward: Suspended) -> None:
        self.number = number
        self.tile = tile
        self.attributes = attributes
        self.forward = forward
        self.answer: Answer | None = None

    def resume(self) -> Any:
        """Continue; return number and call of the next site, or the result."""
        answer, self.answer = self.answer, None
        with self.attributes.exchanged():
            return self.forward.resume(answer)

    def close(self) -> None:
        """End the forward pass where it waits."""
        with self.attributes.exchanged():
            self.forward.close()


def _constant(result: Tensor) -> Answer:
    return lambda _: result
