"""A decorator that checks the arguments of a call by their annotations."""

import collections.abc
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import (
    check_callable,
    check_flag,
    check_integer,
    check_name,
    check_number,
    check_sequence,
    check_tensor,
    check_text,
    shown,
)
from neurenix_ms._core.tracing import is_jit_tracing

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Records:
    """A base class of objects that keep their constructor arguments."""

    def record(self, arguments: Mapping[str, Any]) -> None:
        """Store the checked arguments after the constructor has run."""
        raise NotImplementedError


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Check every argument against its annotation and pass it on as a plain Python value.

    NumPy numbers and strings, 0-d tensors, arrays and tensors of numbers become `int`, `float`,
    `bool`, `str` and lists of them. Any other value that does not fit the annotation raises a
    `ValueError` that names the argument, what is needed and what was given. The function itself checks
    ranges. Every public constructor and function has this decorator. Traced and compiled calls are
    not checked.

    Args:
        function: A function or an `__init__` with annotations.

    Raises:
        ValueError: At a call, if an argument does not fit.

    Examples:
        >>> @checked
        ... def widths(features: Sequence[int] = (4, 8), *, norm: Literal["batch"] | None = None):
        ...     return features, norm
        >>> widths(torch.tensor([2, 4]))
        ([2, 4], None)
        >>> widths([2, 4], norm="none")
        Traceback (most recent call last):
        ValueError: norm must be one of ['batch'] or None, got 'none'
    """

    is_constructor = function.__name__ == "__init__"

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        tracing = torch.compiler.is_compiling() or is_jit_tracing()
        if tracing and not is_constructor:
            return function(*args, **kwargs)
        signature, kinds = _described(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises Python's own error for the call
        for name, value in bound.arguments.items():
            if name in kinds and not tracing:
                bound.arguments[name] = kinds[name].convert(name, value)
        result = function(*bound.args, **bound.kwargs)
        if is_constructor and isinstance(args[0], Records):
            bound.apply_defaults()
            args[0].record(dict(list(bound.arguments.items())[1:]))
        return result

    return call


@dataclass(frozen=True)
class Kind:
    """The kind of value that an annotation requires.

    Args:
        words: The kind in words, for the message.
        convert: A function of the argument's name and value that returns the plain value or raises.
        order: Position among the alternatives of a union; kinds that leave a value unchanged are tried
            before kinds that convert it.
        many: The kind in the plural, for sequences.
    """

    words: str
    convert: Callable[[str, Any], Any]
    order: int
    many: str = "values"


UNCHECKED = "checked by the function itself"  # in `Annotated`, if the function has a better message
PLAIN = {
    type(None): Kind("None", lambda name, value: check_name(name, value, [None]), 1),
    bool: Kind("True or False", check_flag, 2, "True or False"),
    int: Kind("an integer", check_integer, 3, "integers"),
    float: Kind("a finite number", check_number, 4, "numbers"),
    str: Kind("a string", check_text, 6, "strings"),
    Tensor: Kind("a tensor", check_tensor, 0, "tensors"),
}


@functools.cache
def _described(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Kind]]:
    """Return the signature and the kinds; at the first call, so that importing stays fast."""
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)
    kinds = {}
    for name, parameter in signature.parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        kind = None if several or name not in hints else kind_of(hints[name])
        if kind is not None:
            kinds[name] = kind
    return signature, kinds


def kind_of(annotation: Any) -> Kind | None:
    """Return the kind that an annotation requires, or None if it allows any value."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation in PLAIN:
        return PLAIN[type(None) if annotation is None else annotation]
    if origin is Annotated:
        return None if UNCHECKED in inner else kind_of(inner[0])
    if origin in (Union, types.UnionType):
        return _any_of([kind_of(one) for one in inner])
    if origin is Literal:
        return Kind(f"one of {list(inner)}", lambda n, v: check_name(n, v, inner), 5, "names")
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return Kind("a callable", check_callable, 7, "callables")
    if origin in (Sequence, list, tuple):
        return _sequence(origin, inner)
    if origin in (Mapping, dict):
        return _mapping(*map(kind_of, inner))
    if origin is os.PathLike:
        return _instance(os.PathLike)
    cls = annotation if origin is None else origin
    if cls in (Any, object) or not isinstance(cls, type):
        return None
    if getattr(cls, "_is_protocol", False):
        return Kind("a callable", check_callable, 7, "callables")
    return _instance(cls)


def _instance(cls: Any) -> Kind:
    word = "torch.nn.Module" if cls is nn.Module else cls.__name__
    words = f"{'an' if word[0] in 'AEIO' else 'a'} {word}"

    def convert(name: str, value: Any) -> Any:
        if not isinstance(value, cls):
            raise ValueError(f"{name} must be {words}, got {shown(value)}")
        return value

    return Kind(words, convert, 0, f"{word}s")


def _mapping(keys: Kind | None, values: Kind | None) -> Kind:
    whole = _instance(Mapping)
    if keys is None or values is None:
        return whole

    def convert(name: str, value: Any) -> Any:
        whole.convert(name, value)
        return {
            keys.convert(f"{name}[{shown(key)}] (the key)", key): values.convert(
                f"{name}[{shown(key)}]", entry
            )
            for key, entry in value.items()
        }

    return Kind("a Mapping", convert, 7, "Mappings")


def _sequence(origin: Any, inner: tuple[Any, ...]) -> Kind:
    fixed = origin is tuple and Ellipsis not in inner
    kinds = [kind_of(one) for one in inner if one is not Ellipsis]
    many = kinds[0].many if kinds[0] is not None else "values"
    count = f"{len(kinds)} " if fixed else ""

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and many == "tensors":
            raise ValueError(f"{name} must be a sequence of tensors, got {shown(value)}")
        entries = check_sequence(name, value, f"{count}{many}")
        if fixed and len(entries) != len(kinds):
            raise ValueError(f"{name} must be a sequence of {count}{many}, got {shown(value)}")
        each = kinds if fixed else kinds * len(entries)
        pairs = enumerate(zip(each, entries, strict=True))
        plain = [
            entry if k is None else k.convert(f"{name}[{i}]", entry) for i, (k, entry) in pairs
        ]
        return tuple(plain) if isinstance(value, tuple) or origin is tuple else plain

    return Kind(f"a sequence of {count}{many}", convert, 8, "sequences")


def _any_of(kinds: list[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    *first, last = [kind.words for kind in known]
    words = f"{', '.join(first)} or {last}"
    in_order = sorted(known, key=lambda kind: kind.order)

    def convert(name: str, value: Any) -> Any:
        for kind in in_order:
            try:
                return kind.convert(name, value)
            except ValueError as error:
                if str(error).startswith(f"{name}["):
                    raise  # the message already names the entry of the sequence
        raise ValueError(f"{name} must be {words}, got {shown(value)}")

    return Kind(words, convert, min(kind.order for kind in known), known[0].many)
