"""Drawings of the data flow in a module, with the shapes of a real call."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from docs_tools.charts import Arrow, Kind, Node, between, chart
from docs_tools.source import documented

Calls = dict[int, list[Any]]


@dataclass(frozen=True)
class Part:
    """One box of a sketch.

    Args:
        label: Text of the box, and its name in arrows.
        tells: Expression whose shape is shown: a tensor, a list of tensors, or a module, whose last
            output is used. Empty for no shape.
        has: Expression of the module whose weights the box has, by default that of `tells`. A box
            with weights is shaded.
        is_data: Draw a rounded box.
        name: Name in arrows, if the label is not unique.
    """

    label: str
    tells: str = ""
    has: str = ""
    is_data: bool = False
    name: str = ""


@dataclass(frozen=True)
class Sketch:
    """Description of the drawing of a module.

    Args:
        build: Expression that builds the module.
        rows: Boxes from top to bottom; None leaves a position empty.
        given: Expressions of the inputs by name.
        call: Expression of the call, with `model` and the inputs. The result is `y`.
        arrows: Pairs of names; by default every row is connected to the next.
        around: Pairs of names whose arrow passes the boxes in between.
        about: Description of the drawing for screen readers.
    """

    build: str
    rows: Sequence[Sequence[Part | None]]
    about: str
    given: Mapping[str, str] = field(default_factory=dict)
    call: str = "model(x)"
    arrows: Sequence[tuple[str, str]] | None = None
    around: Sequence[tuple[str, str]] = ()


def data(label: str, tells: str | None = None) -> Part:
    """Make a box for data.

    Args:
        label: Text of the box.
        tells: As in `Part`; by default the label itself.
    """
    return Part(label, label if tells is None else tells, is_data=True)


def step(label: str, tells: str = "", has: str = "", name: str = "") -> Part:
    """Make a box for an operation.

    Args:
        label: Text of the box.
        tells: As in `Part`.
        has: As in `Part`.
        name: As in `Part`.
    """
    return Part(label, tells, has, name=name)


def draw(sketch: Sketch) -> str:
    """Run the module and draw its data flow, as HTML in one line.

    Args:
        sketch: What to draw.
    """
    torch.manual_seed(0)
    names = {**_public(), "torch": torch, "nn": nn}
    with _seen() as calls, torch.no_grad():
        names["model"] = eval(sketch.build, names)
        for name, made in sketch.given.items():
            names[name] = eval(made, names)
        calls.clear()
        names["y"] = eval(sketch.call, names)
    names["called"] = lambda module: calls[id(module)]
    rows = [[part and _node(part, names, calls) for part in row] for row in sketch.rows]
    given = None if sketch.arrows is None else [Arrow(*pair) for pair in sketch.arrows]
    arrows = between(rows) if given is None else given
    arrows += [Arrow(*pair, around=True) for pair in sketch.around]
    drawing = chart(rows, arrows, title=sketch.about)
    caption = f"<code>{escape(sketch.build)}</code><br>round: data, shaded: with weights"
    return (
        f'<figure class="drawn" data-search-exclude>{drawing}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def shapes_of(value: Any, calls: Calls) -> list[str]:
    """Return lines with the shape of a value.

    Args:
        value: A tensor, a list of tensors, a module that was called, or a string to be shown.
        calls: Outputs of modules by their id.

    Examples:
        >>> shapes_of([torch.zeros(2, 3), torch.zeros(())], {})
        ['2x3', 'a number']
    """
    match value:
        case Tensor():
            return ["x".join(map(str, value.shape)) or "a number"]
        case nn.Module():
            return shapes_of(calls[id(value)][-1], calls)
        case list() | tuple():
            return [line for one in value for line in shapes_of(one, calls)]
    return [str(value)]


def _node(part: Part, names: dict[str, Any], calls: Calls) -> Node:
    value = eval(part.tells, names) if part.tells else None
    module = eval(part.has, names) if part.has else value
    has_weights = isinstance(module, nn.Module) and any(True for _ in module.parameters())
    kind: Kind = "data" if part.is_data else "learnt" if has_weights else "step"
    shapes = () if value is None else tuple(shapes_of(value, calls))
    return Node(part.name or part.label, part.label, shapes, kind)


@contextmanager
def _seen() -> Iterator[Calls]:
    """Record the outputs of every module that is called in the context."""
    calls: Calls = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        calls.setdefault(id(module), []).append(output)

    handle = register_module_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _public() -> dict[str, Any]:
    """Return every object on the API pages by its name."""
    found = {}
    for path in documented():
        module, _, name = path.rpartition(".")
        found[name] = getattr(importlib.import_module(module), name, None)
    return found
