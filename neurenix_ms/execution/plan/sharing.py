"""Plans of shared parts: parts of a model that every rank runs on its own window of their input.

A shared part is planned like a model of its own, with strides and halos in positions of its input, and
may contain further shared parts. Ranks need windows of its input, and of its result, which lie partly
in the cores of other ranks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.arguments import Kind, passing
from neurenix_ms.execution.plan.footprint import Place, Plan, make_plan
from neurenix_ms.execution.plan.grid import Tile, widened
from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.plan.reach import noise

Core = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SharedPart:
    """Plan of one call of a part, for the whole of its input.

    Args:
        plan: Of the part as a model of its own.
        size: Of its whole input.
        parts: Names of the parts inside it, relative to it.
        shared: Those of them that are shared too, by the number of their site in the plan.
    """

    plan: Plan
    size: tuple[int, ...]
    parts: tuple[str, ...] = ()
    shared: tuple[tuple[int, "SharedPart"], ...] = ()

    def cores(self, tiles: Sequence[Tile], place: Place) -> list[Core]:
        """Return the core of every rank; empty ones where a rank has nothing to add.

        Args:
            tiles: Those of all ranks in the module that calls the part.
            place: Where that module calls the part.
        """
        cores = []
        for tile in tiles:
            index = tile.core_of_whole(place.lines)
            core = tuple(
                (self._cut(axis, index[line.dim].start), self._cut(axis, index[line.dim].stop))
                for axis, line in enumerate(place.lines)
            )
            cores.append(tuple((0, 0) for _ in core) if is_empty(core) else core)
        return cores

    def tiles(self, tiles: Sequence[Tile], place: Place) -> list[Tile]:
        """Return the tile of every rank in the part; arguments as for `cores`.

        A rank without a core takes the window of the first one, so it runs the part as the others do.
        """
        cores = self.cores(tiles, place)
        first = next(core for core in cores if not is_empty(core))
        wides = (self._wide(first if is_empty(core) else core) for core in cores)
        return [Tile(core, wide, self.size) for core, wide in zip(cores, wides, strict=True)]

    def _cut(self, axis: int, position: int) -> int:
        """Return the multiple of the stride next to the end of a core of the calling module."""
        size, stride = self.size[axis], self.plan.stride[axis]
        cut = (position + stride // 2) // stride * stride
        # the last core holds at least one stride, as in a grid
        return size if position >= size or 0 < size - stride < cut else min(cut, size)

    def _wide(self, core: Core) -> Core:
        axes = zip(
            core, self.plan.widest_halo(), self.size, self.plan.stride, self.plan.least, strict=True
        )
        return tuple(widened(*axis) for axis in axes)


def is_empty(core: Core) -> bool:
    """Return whether a core has no positions."""
    return any(start >= stop for start, stop in core)


def outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of submodules that are not inside another of them."""
    return tuple(
        n for n in dict.fromkeys(names) if not any(is_inside(n, o) and n != o for o in names)
    )


def is_inside(name: str, outer: str) -> bool:
    """Return whether a submodule is another one, or a submodule of it."""
    return name == outer or name.startswith(f"{outer}.")


def shared_parts(
    model: nn.Module,
    plan: Plan,
    size: Sequence[int],
    like: Tensor,
    shared: Sequence[str],
    whole: Sequence[str],
) -> tuple[tuple[int, SharedPart], ...]:
    """Plan the parts of a model that are shared, and those inside them.

    Args:
        model: The model, or a shared part.
        plan: Its plan, in which the outermost of these parts are sites.
        size: Of its input.
        like: A tensor with the dtype and device of its input.
        shared: Names of the parts that are shared.
        whole: Names of the parts that run whole.

    Raises:
        ValueError: If a part cannot be shared; the message tells why.
    """
    found = []
    for number, place in enumerate(plan.sites):
        if place is not None and place.result is not None and place.layer in shared:
            inside = [_relative(names, place.layer) for names in (shared, whole)]
            try:
                found.append((number, _shared_part(model, place, size, like, *inside)))
            except ValueError as error:
                raise ValueError(
                    f"a shared part must run in tiles itself, got {place.layer!r}: {error}; name it in "
                    "whole=(...) instead of shared=(...)"
                ) from error
    return tuple(found)


def _shared_part(
    model: nn.Module,
    place: Place,
    size: Sequence[int],
    like: Tensor,
    shared: Sequence[str],
    whole: Sequence[str],
) -> SharedPart:
    check_shareable(place)
    part, here = model.get_submodule(place.layer), input_size(place, size)
    parts = outermost([*shared, *whole])
    with passing_of(place, like):
        plan = make_plan(part, (1, place.channels, *here), like, parts)
        check_layout(place, plan, size)
        return SharedPart(plan, here, parts, shared_parts(part, plan, here, like, shared, whole))


def input_size(place: Place, size: Sequence[int]) -> tuple[int, ...]:
    """Return the size of a part's whole input, for an input of the calling module of this size."""
    return _lengths(place.lines, size)


def check_shareable(place: Place) -> None:
    """Raise if a part is called with more than a feature map with the axes of the input, and vectors."""
    if place.further is None or [line.dim for line in place.lines] != _spatial(place.lines):
        raise ValueError(
            "it must be called with one feature map, and no further arguments but vectors (B, K)"
        )


def passing_of(place: Place, like: Tensor) -> AbstractContextManager[None]:
    """Call a part with vectors of any values, where the model does, while the context is entered."""
    assert place.further is not None
    args, named = place.further
    with torch.inference_mode(False):  # whose tensors have no version counter
        vectors = [_vector(kind, like) for kind in args]
        return passing(vectors, {name: _vector(kind, like) for name, kind in named})


def _vector(kind: Kind, like: Tensor) -> Tensor | None:
    if kind is None:
        return None
    shape, dtype = kind
    if not dtype.is_floating_point:
        return torch.zeros((1, *shape), dtype=dtype, device=like.device)
    return noise((1, *shape), like).to(dtype)


def check_layout(place: Place, plan: Plan, size: Sequence[int]) -> None:
    """Raise unless a part alone returns what it returns where it is called."""
    assert place.result is not None
    outputs = [output.lines for output in plan.outputs]
    wanted = _lengths(place.result, size)
    if (
        len(outputs) != 1
        or [line.dim for line in outputs[0]] != [line.dim for line in place.result]
        or _lengths(outputs[0], input_size(place, size)) != wanted
    ):
        raise ValueError(f"it must return one feature map of size {wanted}")


def _lengths(lines: Lines, size: Sequence[int]) -> tuple[int, ...]:
    return tuple(line.length(0, n, n) for line, n in zip(lines, size, strict=True))


def _spatial(lines: Lines) -> list[int]:
    return [2 + axis for axis in range(len(lines))]


def _relative(names: Sequence[str], outer: str) -> list[str]:
    """Return the names of the submodules inside another one, relative to it."""
    return [n.removeprefix(f"{outer}.") for n in names if is_inside(n, outer) and n != outer]


def num_levels(shared: Sequence[tuple[int, SharedPart]]) -> int:
    """Return how deep parts are shared within parts."""
    return max((1 + num_levels(part.shared) for _, part in shared), default=0)
