"""Code blocks of pages use no names from hidden blocks."""

import ast
import builtins
import re
import textwrap
from pathlib import Path

import pytest
from pages import PAGES, ROOT

from docs_tools.source import PYTHON_BLOCK

HIDDEN = re.compile(r'exec="on"(?!.*source=)')
GIVEN = {*vars(builtins), "__file__"}
RECIPES = ROOT / "docs" / "howto.md"


def shown(page: Path) -> list[str]:
    """Return the code of the visible blocks."""
    content = page.read_text("utf-8")
    blocks = (
        (block[0].splitlines()[0], textwrap.dedent(block[3]))
        for block in PYTHON_BLOCK.finditer(content)
    )
    return [code for head, code in blocks if not HIDDEN.search(head)]


def bound(tree: ast.AST) -> set[str]:
    """Return the names that code defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                names.add(name)
            case (
                ast.FunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.ExceptHandler(name=str(name))
            ):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.partition(".")[0])
            case ast.arg(arg=name):
                names.add(name)
    return names


def used(tree: ast.AST) -> set[str]:
    """Return the names that code reads."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_blocks_need_no_hidden_ones(page: Path):
    known = set(GIVEN)
    for code in shown(page):
        tree = ast.parse(code)
        known |= bound(tree)
        assert used(tree) - known == set(), code


def test_every_recipe_stands_alone():
    first, *others = (ast.parse(code) for code in shown(RECIPES))
    for tree in others:
        assert used(tree) - bound(first) - bound(tree) - GIVEN == set(), ast.unparse(tree)


def test_a_name_from_a_hidden_block_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        '```python exec="on"\nx = 1\n```\n\n```python exec="on" source="above"\nprint(x)\n```\n'
    )
    (code,) = shown(page)
    assert used(ast.parse(code)) - GIVEN == {"x"}
