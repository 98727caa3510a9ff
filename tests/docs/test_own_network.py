"""The networks of the page "Write your own network" are compiled without a break."""

import sys
import textwrap
import types
from collections.abc import Iterator

import pytest
import torch
from pages import ROOT

from docs_tools.source import PYTHON_BLOCK

PAGE = ROOT / "docs" / "tutorials" / "own_network.md"


@pytest.fixture(scope="module")
def names() -> Iterator[dict]:
    page = types.ModuleType("own_network_page")
    sys.modules[page.__name__] = page  # the compiler of torch 2.13 imports it by name
    found = page.__dict__
    blocks = [textwrap.dedent(block[3]) for block in PYTHON_BLOCK.finditer(PAGE.read_text("utf-8"))]
    for code in (*blocks[:2], blocks[-1]):  # what builds the networks, and what compiles them
        exec(compile(code, PAGE, "exec"), found)
    yield found
    del sys.modules[page.__name__]


@pytest.mark.parametrize("name", ["wnet", "transformer"])
def test_the_networks_of_the_page_are_compiled_once_for_all_sizes(names: dict, name: str):
    torch.compiler.reset()
    model = names[name]
    compiled = names["compiled"](model, backend="eager")
    with torch.no_grad():
        for size in ((48, 40), (61, 45), (32, 72)):
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
