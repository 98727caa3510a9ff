"""Fingerprint of everything in a module that can change what its forward computes."""

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from neurenix_ms._core.remember import Remembers

# what nn.Module keeps for itself; parameters, buffers, submodules and forward hooks have their own entry
INTERNAL = frozenset(vars(nn.Module())) | {"_forward_hooks_always_called", "_compiled_call_impl"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
OBSERVERS = ("torch.utils.module_tracker",)  # of counters of operations; they change no result
GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")
PLAIN = frozenset({int, str, type(None)})
NUMBERS = (bool, float, complex, Fraction)
OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
ALIKE_IF_EQUAL: frozenset[type] = frozenset((*NUMBERS, *OF_TORCH, bytes, slice, range))
FEW_VALUES = 64  # of an array: sizes and strides, which a forward may read
MOST_ITEMS = 10_000  # of all containers together; further ones are compared by identity
Attribute = tuple[int, str]  # of a module by its id


@dataclass(frozen=True)
class Fingerprint:
    """State of a module for which a plan holds.

    Modules with equal fingerprints compute the same function of the input, up to the values of
    parameters. The fingerprint covers the module, its submodules and everything their attributes
    refer to: class and mode; the functions of the class; names, shapes, dtypes and devices of
    parameters and buffers (not their values); submodules and parametrizations; forward hooks,
    including global ones; and all other attributes. Numbers, strings, containers, dataclasses and
    namespaces are compared by value, arrays by shape, and small integer arrays by value; other
    objects by identity and by the plain values they hold themselves.

    It does not cover a global variable or a variable of a closure that a forward reads, values
    inside a larger array, and objects inside other objects.
    """

    structure: tuple[Hashable, ...]
    attributes: dict[Attribute, Hashable]
    guards: tuple[
        Callable[[], object], ...
    ]  # None if an object is freed, whose id may belong to another object now

    def changed(self, other: "Fingerprint") -> set[Attribute]:
        """Return the attributes that differ between the two fingerprints."""
        either = self.attributes.keys() | other.attributes.keys()
        return {a for a in either if self.attributes.get(a, a) != other.attributes.get(a, a)}

    def without(self, attributes: set[Attribute]) -> "Fingerprint":
        """Return a fingerprint that ignores these attributes."""
        if not attributes:
            return self
        kept = {a: value for a, value in self.attributes.items() if a not in attributes}
        return Fingerprint(self.structure, kept, self.guards)

    def holds_for(self, now: "Fingerprint") -> bool:
        """Return whether the module is unchanged."""
        same = self.structure == now.structure and self.attributes == now.attributes
        return same and all(guard() is not None for guard in self.guards)


def fingerprint_of(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of a module in its current state."""
    walk = _Walk()
    walk.meet(model)
    hooks = [walk.hooks(vars(torch_module).get(name)) for name in GLOBAL_HOOKS]
    while walk.waiting:
        walk.look_at(walk.waiting.popleft())
    classes = [walk.class_of(cls) for cls in walk.classes]
    return Fingerprint(
        (*walk.structure, *hooks, *classes), walk.attributes, tuple(walk.guards.values())
    )


class _Walk:
    """Traversal of a module and all that it refers to, which visits every module once."""

    def __init__(self) -> None:
        self.waiting: deque[nn.Module] = deque()
        self.met: set[int] = set()
        self.open: set[int] = set()  # containers that are being described
        self.items = 0
        self.structure: list[Hashable] = []
        self.attributes: dict[Attribute, Hashable] = {}
        self.classes: dict[type, None] = {}
        self.guards: dict[int, Callable[[], object]] = {}

    def meet(self, module: nn.Module) -> int:
        if id(module) not in self.met:
            self.met.add(id(module))
            self.waiting.append(module)
        return self.known(module)

    def look_at(self, module: nn.Module) -> None:
        state = module.__dict__
        self.classes.update(dict.fromkeys(type(module).__mro__[:-1]))
        inside = {name: _part(module, name) for name in ("_parameters", "_buffers", "_modules")}
        children = [(name, m if m is None else self.meet(m)) for name, m in inside["_modules"]]
        tensors = [
            (name, t if t is None else _kind(t))
            for part in ("_parameters", "_buffers")
            for name, t in inside[part]
        ]
        hooks = [self.hooks(state.get(name)) for name in HOOKS]
        self.structure.append(
            (id(module), id(type(module)), module.training, *children, *tensors, *hooks)
        )
        skipped = "_memory" if isinstance(module, Remembers) else ""
        here = id(module)
        for name, value in state.items():
            if name not in INTERNAL and name != skipped:
                plain = type(value) in PLAIN
                self.attributes[here, name] = value if plain else self.described(value)

    def hooks(self, hooks: dict[int, Any] | None) -> Hashable:
        return tuple(self.described(h) for h in (hooks or {}).values() if not _is_observer(h))

    def class_of(self, cls: type) -> Hashable:
        values = tuple(vars(cls).values())
        self.guards[id(values)] = lambda: values
        containers = (self.described(v) for v in values if isinstance(v, list | dict | set))
        return self.known(cls), tuple(map(id, values)), *containers

    def known(self, thing: Any) -> int:
        """Return the id of an object, and add a guard that tells when the object is freed."""
        if id(thing) not in self.guards:
            try:
                self.guards[id(thing)] = weakref.ref(thing)
            except TypeError:  # no weak reference is possible, so keep the object alive
                self.guards[id(thing)] = lambda: thing
        return id(thing)

    def described(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is tuple and all(type(item) in PLAIN for item in value):
            return "tuple", value
        if kind in ALIKE_IF_EQUAL:
            return kind.__name__, value
        if isinstance(value, nn.Module):
            return "module", self.meet(value)
        if isinstance(value, Tensor):
            return _kind(value), _small_values(value)
        if isinstance(value, list | tuple | deque | set | frozenset | dict):
            return self.contained(value)
        if isinstance(value, types.MethodType):
            return "method", self.described(value.__func__), self.described(value.__self__)
        if isinstance(value, functools.partial):
            of = (value.func, value.args, value.keywords)
            return "partial", *(self.described(part) for part in of)
        if isinstance(value, types.FunctionType):
            return self.known(value), self.known(value.__code__)
        if isinstance(value, np.ndarray):
            small = value.tobytes() if value.size <= FEW_VALUES else self.known(value)
            return "array", value.shape, value.dtype.str, small
        if isinstance(value, np.generic):
            return value.dtype.str, value.tobytes()
        return self.described_object(value)

    def contained(self, value: Any) -> Hashable:
        self.items += len(value)
        if id(value) in self.open or self.items > MOST_ITEMS:
            return "container", len(value), self.known(value) if id(value) not in self.open else 0
        with _opened(self.open, value):
            if isinstance(value, dict):
                pairs = ((self.described(k), self.described(v)) for k, v in value.items())
                return type(value).__name__, *pairs
            items = map(self.described, value)
            unordered = isinstance(value, set | frozenset)
            return type(value).__name__, frozenset(items) if unordered else tuple(items)

    def described_object(self, value: Any) -> Hashable:
        if isinstance(value, Enum | type):
            return self.known(value)
        if id(value) in self.open:
            return "seen"
        if is_dataclass(value):
            with _opened(self.open, value):
                held = [(f.name, getattr(value, f.name, None)) for f in fields(value)]
                return self.known(type(value)), *((n, self.described(v)) for n, v in held)
        state = getattr(value, "__dict__", None)
        if isinstance(value, types.SimpleNamespace):
            with _opened(self.open, value):
                return type(value).__name__, self.described(state)
        plain = _plain_items(state.items()) if isinstance(state, dict) else ()
        return self.known(value), *plain


class _opened:  # noqa: N801  (a context manager is called like a function)
    def __init__(self, opened: set[int], value: Any) -> None:
        self.opened, self.key = opened, id(value)

    def __enter__(self) -> None:
        self.opened.add(self.key)

    def __exit__(self, *error: object) -> None:
        self.opened.discard(self.key)


def _is_observer(hook: Any) -> bool:
    return getattr(hook, "__module__", None) in OBSERVERS


def _part(module: nn.Module, name: str) -> Iterable[tuple[str, Any]]:
    """Return parameters, buffers or submodules of the module itself, which may be scripted."""
    held = module.__dict__.get(name)
    if held is not None:
        items: Iterable[tuple[str, Any]] = held.items()
        return items
    if name == "_modules":
        return module.named_children()
    if name == "_parameters":
        return module.named_parameters(recurse=False)
    return module.named_buffers(recurse=False)


def _kind(t: Tensor) -> Hashable:
    if nn.parameter.is_lazy(t):
        return type(t), t.dtype, str(t.device)
    return type(t), tuple(t.shape), t.dtype, t.device, t.requires_grad


def _small_values(t: Tensor) -> Hashable:
    """Return the values of a small integer tensor, from which a forward may take sizes."""
    if t.is_floating_point() or t.device.type != "cpu" or type(t) is not Tensor:
        return None
    return tuple(t.flatten().tolist()) if t.numel() <= FEW_VALUES else None


def _plain_items(items: Iterable[tuple[str, Any]]) -> tuple[Hashable, ...]:
    return tuple(
        (name, type(v).__name__, v)
        for name, v in list(items)
        if v is None or isinstance(v, int | float | str | bool)
    )
