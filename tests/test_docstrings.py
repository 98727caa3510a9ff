"""Docstrings of public names: when to use them, shapes, errors, and tested examples."""

import builtins
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import neurenix_ms
from docs_tools.messages import messages
from docs_tools.source import Source, documented

SECTION = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
CHECKS = re.compile(r"check_\w+|choose")  # functions that check arguments for others


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


PUBLIC = [path for path in documented() if not isinstance(named(path), ModuleType)]
EVERY = pytest.mark.parametrize("path", PUBLIC)


def parts(thing: Any) -> dict[str, str]:
    """Sections of a docstring by name; the prose in front of them is called prose."""
    pieces = SECTION.split(inspect.getdoc(thing) or "")
    return {"prose": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def modules() -> list[type[nn.Module]]:
    """Every named module of the package, for users or not."""
    found = {}
    for file in pkgutil.walk_packages(neurenix_ms.__path__, "neurenix_ms."):
        if file.name.endswith("__main__"):
            continue
        for name, thing in vars(importlib.import_module(file.name)).items():
            if (
                isinstance(thing, type)
                and issubclass(thing, nn.Module)
                and thing.__module__ == file.name
                and not name.startswith("_")
            ):
                found[f"{file.name}.{name}"] = thing
    return [found[path] for path in sorted(found)]


@EVERY
def test_a_paragraph_after_the_summary_says_when_to_use_it(path: str):
    summary, _, more = parts(named(path))["prose"].partition("\n\n")
    assert summary.strip().endswith((".", "..."))
    assert len(more.split()) >= 8, more


@EVERY
def test_an_example_shows_its_output(path: str):
    lines = parts(named(path))["Examples"].strip().splitlines()
    assert lines[0].lstrip().startswith(">>>")
    told = [line for line in lines if line.strip() and not line.lstrip().startswith((">>>", "..."))]
    assert told, "no output"
    assert not any("+SKIP" in line for line in lines)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_a_module_documents_its_shapes(module: type[nn.Module]):
    assert "Shape" in parts(module), module


def raised() -> dict[str, set[str]]:
    """Errors that a documented name raises itself, or lets a check of its arguments raise."""
    source = Source()
    found: dict[str, set[str]] = {}
    for message in messages(source):
        definition = (message.module, message.owner)
        for path in PUBLIC:
            distance = source.steps[path].get(definition)
            if not hasattr(builtins, message.error):
                continue  # caught inside of the package
            if distance == 0 or (distance == 1 and CHECKS.fullmatch(message.owner)):
                found.setdefault(path, set()).add(message.error)
    return found


@pytest.mark.parametrize(("path", "errors"), sorted(raised().items()))
def test_what_is_raised_is_said(path: str, errors: set[str]):
    said = parts(named(path)).get("Raises", "")
    assert [error for error in sorted(errors) if error not in said] == []


def arguments(thing: Any) -> dict[str, str]:
    """Descriptions of the arguments of a docstring by name."""
    pieces = re.split(r"^    (\*{0,2}\w+): ", parts(thing).get("Args", ""), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


REFERENCE = re.compile(
    r"(as (in|for|of)|see|that of|likewise) ?`?((?!F\.|nn\.|torch)[\w.]*)`?\W*", re.I
)


@EVERY
def test_an_argument_is_described_where_it_is_read(path: str):
    alone = {name for name, text in arguments(named(path)).items() if REFERENCE.fullmatch(text)}
    assert not alone, f"{alone} refer to another class or function only"
