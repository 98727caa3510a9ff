"""Keep apart what several forward passes of one model, which take turns, write to its modules."""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from neurenix_ms._core.inplace import protected

MAPPINGS = (dict, OrderedDict, defaultdict)
CONTAINERS = (*MAPPINGS, list, deque, set)
SHARED = (nn.Module, Tensor, Enum, type, FunctionType, MethodType, ModuleType)
INTERNAL = frozenset(vars(nn.Module()))  # parameters, submodules, hooks


class Attributes:
    """The attributes of a model's modules in one of several forward passes.

    So each has attributes, buffers, lists, dicts and sets of its own, also those of plain objects that
    an attribute refers to, while modules and parameters are the same objects in all forward passes.

    Args:
        model: The modules are as they were before the first forward pass.
        shared: Modules, by id, whose attributes are those of all forward passes.

    Examples:
        >>> model = nn.ReLU()
        >>> model.calls = [1]
        >>> with Attributes(model).exchanged():
        ...     model.calls.append(2)
        ...     model.calls
        [1, 2]
        >>> model.calls
        [1]
    """

    def __init__(self, model: nn.Module, shared: Container[int] = ()) -> None:
        self._owners: list[tuple[Any, dict[str, Any]]] = []
        self._copies: dict[int, Any] = {}  # of containers, by the id of the original
        for module in model.modules():
            if id(module) not in shared:
                own = self._owned(module)
                buffers = module.__dict__.get("_buffers")
                if buffers:  # a scripted module has none of its own
                    own["_buffers"] = {name: protected(b) for name, b in buffers.items()}
        del self._copies

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Let the modules have these attributes inside the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, (owner, attributes) in enumerate(self._owners):
            self._owners[i] = owner, owner.__dict__
            object.__setattr__(owner, "__dict__", attributes)

    def _owned(self, owner: Any) -> dict[str, Any]:
        """Add an object whose attributes are exchanged; return those of this forward pass."""
        own = dict(owner.__dict__)
        self._owners.append((owner, own))
        for name, value in own.items():
            if name not in INTERNAL:
                own[name] = self._own(value)
        return own

    def _own(self, value: Any) -> Any:
        """Return a container of this forward pass for one of the model; other values are the same."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if type(value) in CONTAINERS:
            self._copies[id(value)] = copied = copy.copy(value)
            if isinstance(copied, dict):
                copied.update({key: self._own(item) for key, item in value.items()})
            elif not isinstance(copied, set):
                copied.clear()
                copied.extend(map(self._own, value))
            return copied
        if not isinstance(value, SHARED) and _has_attributes(value):
            self._copies[id(value)] = value
            self._owned(value)
        return value


def _has_attributes(value: Any) -> bool:
    """Return whether an object has attributes that can be exchanged."""
    try:
        object.__setattr__(value, "__dict__", value.__dict__)
    except (AttributeError, TypeError):
        return False
    return True
