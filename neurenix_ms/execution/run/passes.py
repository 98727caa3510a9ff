"""Passes over the tiles of an input, which compute the global value of every site.

Every pass is the same loop: the tiles run as far as a site, with the values of all earlier sites given,
and only the core of the site's input is used. Passes differ in what they do with the cores: collect
moments, assemble the input of a part run whole, write the result, or propagate a gradient back.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
    Site,
    submodules,
    without_cached_features,
)
from neurenix_ms.execution.plan.statistics import Moments, Normalization
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


class _ReachedError(Exception):
    """Signal that the site is reached and the rest of the model need not run."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site


class Passes:
    """The sites of a model on one input, and the loop over its tiles.

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
        self.given: dict[int, Callable[[Any, Tile], Tensor]] = {}
        self.buffers = Buffers(model, self.parts)

    def numbers(self) -> list[int]:
        """Return the numbers of the calls that are sites."""
        return [i for i, place in enumerate(self.plan.sites) if place is not None]

    def place(self, number: int) -> Place:
        """Return halo and layout of a site."""
        place = self.plan.sites[number]
        assert place is not None
        return place

    def tiles(self, halo: Sequence[Halo]) -> list[Tile]:
        """Return the tiles that this rank runs."""
        return self.ranks.shares(list(self.grid.tiles(halo)))[self.ranks.rank]

    def pieces(self, lines: Lines) -> list[list[Index]]:
        """Return, for every rank, where its cores lie in a whole tensor."""
        shares = self.ranks.shares(list(self.grid.tiles(self.plan.output_halo())))
        return [[tile.core_of_whole(lines) for tile in share] for share in shares]

    def until(self, number: int) -> Iterator[tuple[Tile, Site, Tensor]]:
        """Yield every tile, the site as it is called there, and the core of the site's input."""
        place = self.place(number)
        for tile in self.tiles(place.halo):
            try:
                self._run(tile, number)
            except _ReachedError as reached:
                x = reached.site.x
                yield tile, reached.site, x[tile.core_of_tile(place.lines)]
                # free the tile's tensors before the next tile runs; users of the loop do so too
                del x
            else:
                raise self._other_calls(number)
            self.progress()

    def outputs(self, skip: Container[int] = ()) -> Iterator[tuple[int, Tile, list[Tensor], Any]]:
        """Yield number and tile, and the cores of all outputs with their structure."""
        halo = self.plan.output_halo()
        first = sum(map(len, self.ranks.shares(list(self.grid.tiles(halo)))[: self.ranks.rank]))
        for number, tile in enumerate(self.tiles(halo), first):
            if number in skip:
                continue
            leaves, structure = tree_flatten(self._run(tile, None))
            if len(leaves) != len(self.plan.outputs):
                raise self._other_calls(len(self.plan.sites))
            places = zip(leaves, self.plan.outputs, strict=True)
            cores = [y[tile.core_of_tile(place.lines)] for y, place in places]
            del leaves, places
            yield number, tile, cores, structure
            del cores
            self.progress()
        self.buffers.moved()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Update the model's buffers once, however often tiles run, and not at all on failure."""
        with (
            enable_gradient_checkpointing(False),
            without_cached_features(self.model),
            self.buffers.kept(),
        ):
            yield

    def _run(self, tile: Tile, target: int | None) -> Any:
        def visit(number: int, site: Site) -> Tensor:
            if number >= len(self.plan.sites):
                raise self._other_calls(number)
            if self.plan.sites[number] is None:
                return site.plain()
            if number == target:
                raise _ReachedError(site)
            return self.given[number](site, tile)

        self.buffers.restore()
        window = (slice(None), slice(None), *tile.window())
        further = passed(self.x.shape[0])
        with Interception(self.parts, visit):
            # it may overwrite its input
            return self.model(read(self.x, window, self.like, own=True), *protected(further))

    def _other_calls(self, number: int) -> ValueError:
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


def find_values(passes: Passes, keep_inputs: bool = False) -> "Values":
    """Run the passes that compute the global value of every site, one after the other."""
    values = Values(passes, keep_inputs)
    with torch.no_grad():
        for number in passes.numbers():
            values.find(number)
    return values


class Values:
    """Global values of the sites: moments of normalizations, and results of parts run whole."""

    def __init__(self, passes: Passes, keep_inputs: bool) -> None:
        self.passes = passes
        self.keep_inputs = keep_inputs
        self.moments: dict[int, Moments] = {}
        self.norms: dict[int, Normalization] = {}
        self.inputs: dict[int, Tensor] = {}
        self.results: dict[int, Tensor] = {}
        self.others: dict[int, Others] = {}  # arguments of the parts beside their feature map

    def find(self, number: int) -> None:
        """Compute the value of a site in one pass over the tiles, and use it in later passes."""
        if self.passes.place(number).result is None:
            self._collect_moments(number)
        else:
            self._run_whole(number)

    def move_running(self) -> None:
        """Update the running statistics of all normalizations, once."""
        for number, norm in self.norms.items():
            norm.move_running(self.moments[number])

    def _collect_moments(self, number: int) -> None:
        total: Moments | None = None
        for _, site, core in self.passes.until(number):
            assert isinstance(site, Normalization)
            none = site.no_moments()
            if core.numel():
                here = site.moments(core)
                total = here if total is None else total.merged(here)
            # keep the weights and settings of the call, without its input
            nothing = core.new_empty(0, *core.shape[1:])
            self.norms[number] = replace(site, x=nothing, plain=_not_again)
            del site, core
        total = self.passes.ranks.merged(total, none)
        if total is None:
            raise ValueError("a normalization needs at least one value, got an empty feature map")
        self.moments[number] = total
        moments = total
        self.passes.given[number] = lambda site, tile: site.normalized(moments.mean, moments.var)

    def _run_whole(self, number: int) -> None:
        place = self.passes.place(number)
        whole: Tensor | None = None
        name = place.layer
        for tile, site, core in self.passes.until(number):
            assert isinstance(site, Part)
            others = self.others.setdefault(number, site.others.detached())
            if not others.equal(site.others):
                raise ValueError(
                    "a part run whole must be called with the same vectors in every tile, got ones that "
                    f"depend on the input for {name!r}; leave it out of whole=(...)"
                )
            del site
            if whole is None:
                whole = core.new_empty(whole_shape(core, place.lines, self.passes.grid.size))
            whole[tile.core_of_whole(place.lines)] = core
            del core
        assert whole is not None
        self.passes.ranks.complete(whole, self.passes.pieces(place.lines))
        if self.keep_inputs:
            self.inputs[number] = whole
        result = self.others[number].call(self.passes.parts[name], whole)
        self.results[number] = result
        lines = place.result
        assert lines is not None
        length = [
            line.length(0, n, n) for line, n in zip(lines, self.passes.grid.size, strict=True)
        ]
        came = [result.shape[line.dim] for line in lines]
        if came != length:
            raise ValueError(
                "a part run whole must return sizes proportional to those of the input, got "
                f"{came} instead of {length} from {name!r}; leave it out of whole=(...)"
            )
        # a copy, because later layers may overwrite it, and the next tile reads parts of it again
        self.passes.given[number] = lambda site, tile: result[tile.wide_of_whole(lines)].clone()


def _not_again() -> Tensor:
    raise RuntimeError("the input of this call is not kept; only its settings are")


def whole_shape(core: Tensor, lines: Any, size: tuple[int, ...]) -> list[int]:
    """Return the shape of the whole tensor of which `core` is a part."""
    shape = list(core.shape)
    for line, n in zip(lines, size, strict=True):
        shape[line.dim] = line.length(0, n, n)
    return shape
