"""Deprecated names of classes, arguments and attributes, which still work with a warning."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# classes named in files of earlier versions
RENAMED_CLASSES = {"Normaliser": "Normalizer", "StandardisedNetwork": "StandardizedNetwork"}


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that the name `old` is deprecated in favor of `new`."""
    warnings.warn(
        f"{old} is now called {new}; the old name works until version 1.0",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def renamed_classes(module: str, classes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that resolves old names of its classes.

    Args:
        module: The module's `__name__`.
        classes: New names by old names.
    """

    def get(name: str) -> Any:
        if name not in classes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", classes[name])
        return getattr(sys.modules[module], classes[name])

    return get


def renamed_arguments(
    **names: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return a decorator that lets a function accept arguments by their old names too.

    Args:
        **names: New names by old names.

    Raises:
        ValueError: At a call that gives an argument by both names.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise ValueError(f"{new} must be given once, got {new} and {old}, its old name")
                warn_renamed(f"the argument {old}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        call.renamed_arguments = names  # type: ignore[attr-defined]
        return call

    return decorate


class RenamedAttribute:
    """An attribute under its old name.

    Args:
        name: The new name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, old: str) -> None:
        self.old = old

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        warn_renamed(f"the attribute {self.old}", self.name)
        return getattr(instance, self.name)
