"""What a public module was built from: its constructor arguments, read back as plain values."""

import inspect
from collections.abc import Iterator
from typing import Any

PLAIN = (str, int, float, bool, type(None))


class Configured:
    """A module that keeps every constructor argument under its own name and can be rebuilt from them."""

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name; `type(model)(**model.config)` builds the same network."""
        names = inspect.signature(type(self)).parameters
        return {name: _copied(getattr(self, name)) for name in names}


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def is_plain(value: Any) -> bool:
    """Whether `value` consists of numbers, texts, None, lists and dicts only."""
    if isinstance(value, dict):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return isinstance(value, PLAIN)


def library_classes(cls: type = Configured) -> Iterator[type]:
    """Every class of the library that can be rebuilt from its config."""
    children: list[type] = cls.__subclasses__()
    for child in children:
        if child.__module__.startswith("neurenix_ms."):
            yield child
        yield from library_classes(child)
