"""An interpreter of pickles that records calls and never makes them.

A pickle is a program for a small stack machine. The machine of Python imports the classes and
functions that the program names and calls them. This one never imports, reads attributes or calls: a
name becomes a `Global`, a call becomes a `Call`, and only containers, numbers, text and bytes become
Python objects.
"""

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2 names, in protocol 2


class Ordered(dict[Any, Any]):
    """An ordered dict of the pickle, with the attributes that are set on it."""

    state: Any = None


CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Ordered,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}
# Modules of the standard library that models refer to. Safety does not depend on this list, because
# nothing is ever called. With it an attack raises an error and is not silently ignored.
HARMLESS = {
    *("_codecs", "argparse", "array", "collections", "copyreg", "datetime", "decimal", "enum"),
    *("fractions", "functools", "itertools", "logging", "operator", "pathlib", "random", "types"),
    *("uuid", "weakref"),
}
HARMLESS_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"),
    *("list", "object", "range", "set", "slice", "str", "tuple"),
}


class HarmfulCallError(ValueError):
    """A pickle requests a call that no model needs."""


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a class or function that the pickle refers to."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Call:
    """A call or a new object that the pickle requests, with the state of the object."""

    function: Global
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to an object outside the pickle, such as a storage of torch."""

    key: Any


def interpret(file: IO[bytes]) -> tuple[Any, list[Persistent]]:
    """Read one pickle and leave `file` at the byte after its end.

    Args:
        file: Opened at the first byte of a pickle of protocol 2 or later, as torch writes them.

    Returns:
        The object, with records in place of calls and names, and all references to outside objects.

    Raises:
        ValueError: If it is not a pickle, is truncated, or requests a call that no model needs.
    """
    machine = _run(file)
    (result,) = machine.stack
    return result, machine.persistent


def named_in(file: IO[bytes]) -> set[str]:
    """Read one pickle, and return the dotted names of all classes and functions that it mentions.

    Args:
        file: Opened at the first byte of a pickle; it is left at the byte after its end.

    Raises:
        ValueError: As `interpret`.
    """
    return _run(file).names


def _run(file: IO[bytes]) -> "_Machine":
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        step = STEPS.get(opcode.name)
        if step is None:
            raise ValueError(f"torch writes no pickle opcode {opcode.name}")
        step(machine, argument)
    return machine


class _Machine:
    """The stack of a pickle, the marks on it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Persistent] = []
        self.names: set[str] = set()

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("an opcode takes more than the stack holds")
        return self.stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def drop(self) -> None:
        self.pop()

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def name(self, module: Any, name: Any) -> None:
        found = _named(module, name)
        self.names.add(found.name)
        self.push(found)

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def call(self) -> None:
        function, args = self.pop_many(2)
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("it requests a call of something that is not a named function")
        if function.name in CONTAINERS:
            self.push(CONTAINERS[function.name](*args))
        else:
            _check_harmless(function.name)
            self.push(Call(function, args))

    def build(self) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Call | Ordered):  # of an Ordered, attributes and not entries
            self.stack[-1].state = state

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(items)
        elif not isinstance(target, Call):  # items of a list subclass are not weights
            target.extend(items)

    def put(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Call):
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def refer(self) -> None:
        key = self.pop()
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            self.push(key[1])  # the old format stores a class together with its source code
        else:
            self.persistent.append(Persistent(key))
            self.push(self.persistent[-1])


def _check_harmless(name: str) -> None:
    module, _, rest = name.partition(".")
    if module == "builtins":
        harmless = rest in HARMLESS_BUILTINS
    else:
        harmless = module in HARMLESS or module not in sys.stdlib_module_names
    if not harmless:
        raise HarmfulCallError(
            f"it requests a call of {name}, which no model needs; nothing was called"
        )


def _named(module: Any, name: Any) -> Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("the name of a class or function must be a string")
    return Global(f"{OLD_MODULES.get(module, module)}.{name}")


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _skip(machine: _Machine, argument: Any) -> None:
    pass


def _remember(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _recall(machine: _Machine, argument: Any) -> None:
    machine.push(machine.memo[argument])


LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(LITERALS, _push),
    **dict.fromkeys(("PROTO", "FRAME"), _skip),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _recall),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(m.pop_many(1)),
    "TUPLE2": lambda m, _: m.push(m.pop_many(2)),
    "TUPLE3": lambda m, _: m.push(m.pop_many(3)),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.drop_to_mark(),
    "MARK": lambda m, _: m.mark(),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "FROZENSET": lambda m, _: m.push(frozenset(m.pop_to_mark())),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.put(list(m.pop_many(2))),
    "SETITEMS": lambda m, _: m.put(m.pop_to_mark()),
    "GLOBAL": lambda m, name: m.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop_many(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
}
