"""Arguments beside the feature map: those of a model in every tile, and those of a part run whole."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from neurenix_ms._core.checks import check_sequence

VECTOR = 2  # axes, of a batch of vectors; a feature map has at least three
Kind = tuple[tuple[int, ...], torch.dtype] | None  # shape without the batch, and dtype, of a vector
Kinds = tuple[tuple[Kind, ...], tuple[tuple[str, Kind], ...]]  # by position and by name
_passed: ContextVar[tuple[tuple[Any, ...], dict[str, Any]]] = ContextVar(
    "arguments_of_every_tile", default=((), {})
)


@contextmanager
def passing(args: Sequence[Any], named: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Call the model with these arguments, after the tile, while the context is entered."""
    token = _passed.set((tuple(args), dict(named or {})))
    try:
        yield
    finally:
        _passed.reset(token)


def passed(batch: int) -> tuple[Any, ...]:
    """Return the arguments of a tile, or those of a probe, which has another batch size."""
    return tuple(_of_batch(value, batch) for value in _passed.get()[0])


def with_passed(module: Callable[..., Any], batch: int) -> Callable[[Tensor], Any]:
    """Return a function of a probe that calls a model, or a part of one, with all arguments."""
    args = passed(batch)
    named = {name: _of_batch(value, batch) for name, value in _passed.get()[1].items()}
    return lambda x: module(x, *args, **named)


def kinds_passed() -> tuple[Hashable, ...]:
    """Return what a plan depends on: shapes and dtypes of tensors, and other values."""
    args, named = _passed.get()
    return tuple(
        (name, tuple(value.shape[1:]), value.dtype)
        if isinstance(value, Tensor)
        else (name, repr(value))
        for name, value in [*enumerate(args), *named.items()]
    )


def _of_batch(value: Any, batch: int) -> Any:
    if not isinstance(value, Tensor) or not value.ndim or len(value) == batch:
        return value
    return value[:1].expand(batch, *value.shape[1:])


def check_args(args: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """Return further arguments of a model as a tuple, or raise if a tile cannot get them whole."""
    values = check_sequence("args", args, "arguments of the model")
    for number, value in enumerate(values):
        if not isinstance(value, Tensor) or not value.ndim:
            continue
        if len(value) != shape[0]:
            raise ValueError(
                f"args[{number}] must have the batch size of x, {shape[0]}, along its first axis, got "
                f"shape {tuple(value.shape)}"
            )
        if 2 < value.ndim == len(shape) and tuple(value.shape[2:]) == tuple(shape[2:]):
            raise ValueError(
                f"args[{number}] must have no spatial axes, because every tile gets all of it, got "
                f"shape {tuple(value.shape)}; concatenate it to the channels of x"
            )
    return tuple(values)


@dataclass(frozen=True)
class Others:
    """Arguments of a call beside its feature map: vectors, which do not depend on the tile, and None."""

    leaves: tuple[Tensor | None, ...]
    structure: TreeSpec
    place: int  # of the feature map

    def vectors(self) -> list[Tensor]:
        """Return the vectors."""
        return [leaf for leaf in self.leaves if leaf is not None]

    def kinds(self, batch: int) -> Kinds | None:
        """Return the kinds of the arguments after the feature map, and of those passed by name.

        None stands for a call whose feature map is not its first positional argument, or with vectors
        of another batch size.
        """
        args, named = tree_unflatten(list(self.leaves), self.structure)
        further = [value for value in (*args, *named.values()) if value is not None]
        if not args or self.place > 0 or not all(is_batched(value, batch) for value in further):
            return None
        return tuple(map(_kind, args[1:])), tuple((name, _kind(v)) for name, v in named.items())

    def detached(self) -> "Others":
        """Return the same without a graph."""
        return self.replaced([v.detach() for v in self.vectors()])

    def replaced(self, vectors: Sequence[Tensor]) -> "Others":
        """Return the same with other vectors."""
        new = iter(vectors)
        leaves = tuple(None if leaf is None else next(new) for leaf in self.leaves)
        return Others(leaves, self.structure, self.place)

    def equal(self, other: "Others") -> bool:
        """Return whether all vectors have the same values."""
        mine, theirs = self.vectors(), other.vectors()
        return len(mine) == len(theirs) and all(
            a.shape == b.shape and bool((a == b).all()) for a, b in zip(mine, theirs, strict=True)
        )

    def call(self, module: Callable[..., Any], x: Tensor) -> Any:
        """Call a module with a feature map and these."""
        leaves: list[Any] = list(self.leaves)
        leaves[self.place] = x
        args, kwargs = tree_unflatten(leaves, self.structure)
        return module(*args, **kwargs)


ALONE = Others((None,), tree_flatten(((0,), {}))[1], 0)  # of a call with a feature map only


def is_batched(value: Any, batch: int) -> bool:
    """Return whether an argument has a number or a vector for every sample."""
    return isinstance(value, Tensor) and 1 <= value.ndim <= VECTOR and len(value) == batch


def _kind(value: Tensor | None) -> Kind:
    return None if value is None else (tuple(value.shape[1:]), value.dtype)


def parted(args: Any, kwargs: Any) -> tuple[Tensor, Others] | None:
    """Return the feature map of a call and what else it got; None if there is no one feature map."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return args[0], ALONE  # most calls; flattening the arguments would be slower
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    maps = [i for i in tensors if leaves[i].ndim > VECTOR] if len(tensors) > 1 else tensors
    others = [None if i in maps else leaf for i, leaf in enumerate(leaves)]
    if len(maps) != 1 or any(leaf is not None and not isinstance(leaf, Tensor) for leaf in others):
        return None
    return leaves[maps[0]], Others(tuple(others), structure, maps[0])
