"""Tiles in step: all tiles run as far as a site, meet there, and continue, so that nothing runs twice.

The first tile runs in the calling thread. Whenever it reaches a site, the others are brought to the same
site, one after the other; then moments are merged or a part is run, and the first tile continues. A
process with one tile has no others, and meets the tiles of other processes only.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.sites import Part, Site
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run.attributes import Attributes
from neurenix_ms.execution.run.merged import (
    PartMeeting,
    merged_moments,
    normalized_together,
    run_together,
)
from neurenix_ms.execution.run.suspended import Pause, Suspended
from neurenix_ms.execution.run.tiles import TiledRun, check_equal_vectors

Answer = Callable[[Any], Tensor]  # of a site to a tile
Met = list[tuple[Tile, Any]]  # all tiles of this process, and the same site in each


class InStep(TiledRun):
    """Forward passes over all tiles of a process, which meet at every site.

    The memory is that of one tile and of what the others keep at a site. In grad mode, results have a
    graph, and `token` must be added to the loss. Arguments as for `TiledRun`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token = torch.zeros((), device=self.like.device, requires_grad=True)
        self.norms: dict[int, tuple[Normalization, Moments]] = {}
        self.others: list[_Other] = []
        self.last_site = -1

    def results(self, skip: Container[int] = ()) -> Iterator[tuple[int, Tile, list[Tensor], Any]]:
        """Yield number and tile, and the cores of all outputs with their structure.

        Tiles in `skip` run as far as the last site.
        """
        tiles = self.tiles(self.plan.widest_halo())
        first = next(i for i, (number, _) in enumerate(tiles) if number not in skip)
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
            answers = self._answers(number, site, met)
            answer = answers.pop(first)
            for other, its in zip(self.others, answers, strict=True):
                other.answer = its
            return answer(site)

        result = self.call(here[1], visit)
        if self.last_site != max(self.numbers(), default=-1):
            raise self.other_calls(len(self.plan.sites))
        yield *here, *self.cores(here[1], result)
        del result
        self.progress()
        for other in self.others:
            if other.number not in skip:
                yield other.number, other.tile, *self._finished(other)
                self.progress()
        self.buffers.moved()

    def move_running(self) -> None:
        """Update the running statistics of all normalizations, once."""
        for norm, moments in self.norms.values():
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

    def _answers(self, number: int, site: Site, met: Met) -> list[Answer]:
        """Return what every tile computes of the site when it continues."""
        return (
            self._of_part(number, site, met)
            if isinstance(site, Part)
            else self._of_norm(number, met)
        )

    def _of_norm(self, number: int, met: Met) -> list[Answer]:
        norms: list[Normalization] = [norm for _, norm in met]
        cores = [tile.core_of_tile(self.place(number).lines) for tile, _ in met]
        moments = merged_moments(norms, cores, self.ranks)
        self.norms[number] = norms[0].settings(), moments
        if torch.is_grad_enabled():
            self.token, results = normalized_together(norms, cores, moments, self.ranks, self.token)
            return [_constant(result) for result in results]
        return [lambda norm: norm.normalized(moments.mean, moments.var)] * len(met)

    def _of_part(self, number: int, part: Part, met: Met) -> list[Answer]:
        place, tiles = self.place(number), [tile for tile, _ in met]
        for _, other in met:
            check_equal_vectors(part.others, other)

        def assembled(xs: Sequence[Tensor]) -> Tensor:
            pairs = zip(tiles, xs, strict=True)
            return self.assembled(
                number, ((tile, x[tile.core_of_tile(place.lines)]) for tile, x in pairs)
            )

        xs = [other.x for _, other in met]
        if torch.is_grad_enabled():
            assert place.result is not None
            layouts = place.lines, place.result
            check = partial(self.lines_of_result, number)
            meeting = PartMeeting(part, tiles, *layouts, assembled, check, self.ranks)
            self.token, results = run_together(meeting, xs, self.token)
            return [_constant(result) for result in results]
        result = part.others.call(part.forward, assembled(xs))
        lines = self.lines_of_result(number, result)

        def cropped(tile: Tile) -> Answer:
            return lambda _: result[tile.wide_of_whole(lines)].clone()

        return [cropped(tile) for tile in tiles]


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
