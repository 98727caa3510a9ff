"""Passes over the tiles of an input, which compute the global value of every site.

Every pass is the same loop: the tiles run as far as a site, with the values of all earlier sites given,
and only the core of the site's input is used. Passes differ in what they do with the cores: collect
moments, assemble the input of a part run whole, write the result, or propagate a gradient back.
"""

from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.execution.plan.arguments import Others
from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.sites import Part, Site
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run.tiles import TiledRun, check_equal_vectors


class _ReachedError(Exception):
    """Signal that the site is reached and the rest of the model need not run."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site


class Passes(TiledRun):
    """The loop over the tiles of an input, which runs once for every site and once for the result.

    Only one tile is in memory at a time. Arguments as for `TiledRun`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: dict[int, Callable[[Any, Tile], Tensor]] = {}
        self.values: Values | None = None

    def results(self, skip: Container[int] = ()) -> Iterator[tuple[int, Tile, list[Tensor], Any]]:
        """Run all passes; yield number and tile, and the cores of all outputs with their structure."""
        self.values = find_values(self)
        yield from self.outputs(skip)

    def move_running(self) -> None:
        """Update the running statistics of all normalizations, once."""
        assert self.values is not None
        self.values.move_running()

    def until(self, number: int) -> Iterator[tuple[Tile, Site, Tensor]]:
        """Yield every tile, the site as it is called there, and the core of the site's input."""
        place = self.plan.place(number)
        for _, tile in self.tiles(place.halo):
            try:
                self._run(tile, number)
            except _ReachedError as reached:
                x = reached.site.x
                yield tile, reached.site, x[tile.core_of_tile(place.lines)]
                # free the tile's tensors before the next tile runs; users of the loop do so too
                del x
            else:
                raise self.other_calls(number)
            self.progress()

    def outputs(self, skip: Container[int] = ()) -> Iterator[tuple[int, Tile, list[Tensor], Any]]:
        """Yield number and tile, and the cores of all outputs with their structure."""
        for number, tile in self.tiles(self.plan.output_halo()):
            if number in skip:
                continue
            cores, structure = self.cores(tile, self._run(tile, None))
            yield number, tile, cores, structure
            del cores
            self.progress()
        self.buffers.moved()

    def _run(self, tile: Tile, target: int | None) -> Any:
        def visit(number: int, site: Site) -> Tensor:
            if number >= len(self.plan.sites):
                raise self.other_calls(number)
            if self.plan.sites[number] is None:
                return site.plain()
            if number == target:
                raise _ReachedError(site)
            return self.given[number](site, tile)

        self.buffers.restore()
        return self.call(tile, visit)


def find_values(passes: Passes, keep_inputs: bool = False) -> "Values":
    """Run the passes that compute the global value of every site, one after the other."""
    values = Values(passes, keep_inputs)
    with torch.no_grad():
        for number in passes.plan.site_numbers():
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
        if self.passes.plan.place(number).result is None:
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
            self.norms[number] = site.settings()
            del site, core
        total = self.passes.ranks.merged(total, none)
        if total is None:
            raise ValueError("a normalization needs at least one value, got an empty feature map")
        self.moments[number] = total
        moments = total
        self.passes.given[number] = lambda site, tile: site.normalized(moments.mean, moments.var)

    def _run_whole(self, number: int) -> None:
        whole = self.passes.assembled(number, self._cores_of_part(number))
        if self.keep_inputs:
            self.inputs[number] = whole
        name = self.passes.plan.place(number).layer
        result = self.others[number].call(self.passes.parts[name], whole)
        self.results[number] = result
        lines = self.passes.lines_of_result(number, result)
        # a copy, because later layers may overwrite it, and the next tile reads parts of it again
        self.passes.given[number] = lambda site, tile: result[tile.wide_of_whole(lines)].clone()

    def _cores_of_part(self, number: int) -> Iterator[tuple[Tile, Tensor]]:
        for tile, site, core in self.passes.until(number):
            assert isinstance(site, Part)
            others = self.others.setdefault(number, site.others.detached())
            check_equal_vectors(others, site)
            del site
            yield tile, core
            del core
