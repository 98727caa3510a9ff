"""Base classes that keep the constructor arguments of a module as plain values."""

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neurenix_ms._core.arguments import Records
from neurenix_ms._core.checks import shown

PLAIN = (str, int, float, bool, type(None))
DEEPEST = 32  # levels of lists and dicts in a config
MOST_ENTRIES = 2**17


class Described:
    """A module that shows its constructor arguments in its `repr`."""

    def extra_repr(self) -> str:
        """Return the constructor arguments that differ from their defaults, without modules."""
        parameters = inspect.signature(type(self)).parameters.values()
        known = [(p, getattr(self, p.name)) for p in parameters if hasattr(self, p.name)]
        return ", ".join(
            f"{parameter.name}={shown(value)}"
            for parameter, value in known
            if not isinstance(value, nn.Module) and not _is_default(value, parameter.default)
        )


class Configured(Records, Described):
    """A module that keeps every constructor argument as an attribute and can be rebuilt from them.

    A constructor decorated by `checked` stores its arguments automatically. It assigns an attribute
    itself only for a value other than the given one, such as a derived default, or for a module.
    """

    preset: str | None = None  # of the registry, by which it was built

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def record(self, arguments: Mapping[str, Any]) -> None:
        """Store the arguments that the constructor has not stored, except for modules."""
        for name, value in arguments.items():
            if not hasattr(self, name) and not isinstance(value, nn.Module):
                setattr(self, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled module; arguments that its version did not have get their defaults."""
        super().__setstate__(state)  # type: ignore[misc]
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.default is not parameter.empty and not hasattr(self, name):
                setattr(self, name, parameter.default)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
        description: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write the network to a folder; see `neurenix_ms.sharing.save_pretrained`."""
        _sharing().save_pretrained(
            self,
            folder,
            overwrite=overwrite,
            input_shape=input_shape,
            description=description,
            license=license,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        map_location: str | torch.device | None = None,
        download: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> Any:
        """Read a network of this class; see `neurenix_ms.from_pretrained`."""
        return _sharing().from_pretrained(
            source,
            cls=cls,
            map_location=map_location,
            download=download,
            revision=revision,
            token=token,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload a network of neurenix_ms",
        input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
        description: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the network; see `neurenix_ms.sharing.push_to_hub`."""
        return _sharing().push_to_hub(
            self,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            input_shape=input_shape,
            description=description,
            license=license,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name; `type(model)(**model.config)` builds the same network."""
        names = inspect.signature(type(self)).parameters
        return {name: _copied(getattr(self, name)) for name in names}


def _sharing() -> Any:
    """Return the module by which networks are shared, which needs everything else."""
    return importlib.import_module("neurenix_ms.sharing")


def _is_default(value: Any, default: Any) -> bool:
    value, default = _copied(value), _copied(default)
    return type(value) is type(default) and bool(value == default)


def _copied(value: Any) -> Any:
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def is_plain(value: Any) -> bool:
    """Return whether `value` holds only numbers, strings, None, lists and dicts with string keys."""
    try:
        check_plain("value", value)
    except ValueError:
        return False
    return True


def check_plain(name: str, value: Any) -> None:
    """Raise unless `value` holds only numbers, strings, None, lists and dicts with string keys.

    Instances of subclasses, such as NumPy numbers, are not plain: the reader of files does not know
    their classes.

    Args:
        name: Name of the value, for the message.
        value: The value given; it may contain itself.

    Raises:
        ValueError: If an entry is something else; the message names it.
    """
    waiting, visited = [(name, value, 0)], 0
    while waiting:
        path, item, depth = waiting.pop()
        visited += 1
        if depth > DEEPEST or visited + len(waiting) > MOST_ENTRIES:
            raise ValueError(
                f"{name} must have at most {DEEPEST} levels of lists and dicts and {MOST_ENTRIES} "
                f"entries, got more from {path[:80]} on"
            )
        if type(item) in (list, tuple):
            waiting += [(f"{path}[{i}]", inner, depth + 1) for i, inner in enumerate(item)]
        elif type(item) is dict:
            for key, inner in item.items():
                if type(key) is not str:
                    raise ValueError(f"{path} must have strings as keys, got {shown(key)}")
                waiting.append((f"{path}.{key[:80]}", inner, depth + 1))
        elif type(item) not in PLAIN:
            raise ValueError(
                f"{path} must be a plain number, string, None, list or dict, got {shown(item)} "
                f"of type {type(item).__name__}"
            )


def library_classes(cls: type = Configured) -> Iterator[type[nn.Module]]:
    """Yield every class of the library that can be rebuilt from its config."""
    child: type[nn.Module]
    children: list[Any] = cls.__subclasses__()
    for child in children:
        # torch.export creates subclasses of the same name and module
        known: object = getattr(sys.modules.get(child.__module__), child.__name__, None)
        if child.__module__.startswith("neurenix_ms.") and child is known:
            yield child
        yield from library_classes(child)
