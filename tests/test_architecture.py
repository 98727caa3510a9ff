"""Imports between the parts of the package go downwards only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from extras import EXTRAS

PACKAGE = Path(__file__).parents[1] / "neurenix_ms"

# from top to bottom; a part may import parts of lower floors
FLOORS = [
    ["command"],
    ["fitting"],
    ["__init__", "compat", "recipes"],
    ["weights", "bench", "prediction"],
    ["sharing"],
    ["registry"],
    ["multiscale", "msnet", "timestepping", "implicit"],
    ["datasets", "training", "files", "transport"],
    ["execution", "backbones", "conservation"],
    ["layers"],
    ["checkpointing", "meter"],
    ["_core"],
]
# inside `_core`, from top to bottom; inside `execution`, `plan` does not import `run`
CORE = [
    "moved",
    "io",
    "deprecation",
    "recomputation",
    "remember",
    "probing",
    "dilation",
    "orders",
    "dims",
    "convolution",
    "constants",
    "operators",
    "inplace",
    "parsing",
    "seeds",
    "sizes",
    "config",
    "arguments",
    "checks",
    "tracing",
    "hooks",
]
PARTS_OF_LIGHTNING = ("training", "fitting", "recipes")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, parts in enumerate(FLOORS) if name in parts)


def imports(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def imported_parts(path: Path, inside: str = "") -> set[str]:
    """The parts of the package, or of one part of it, that a file imports from."""
    prefix = ".".join(["neurenix_ms", inside]).strip(".").split(".")
    names = [name.split(".") for name in imports(path)]
    return {n[len(prefix)] for n in names if n[: len(prefix)] == prefix and len(n) > len(prefix)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path):
    here = part_of(path)
    names = {name for floor in FLOORS for name in floor}
    for there in imported_parts(path) - {here}:
        there = there if there in names else "__init__"
        # they are users of the public names, which are imported when they are used
        public = here in ("__init__", "recipes", "compat")
        assert floor(there) > floor(here) or (public and floor(there) == floor(here)), (
            f"{here} -> {there}"
        )


def test_the_table_of_the_design_page_has_this_order():
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("| layer | modules |")[2].partition("\n\n")[0]
    cells = [row.split("|")[2] for row in table.splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    numbers = [floor(name) for name in named]
    assert numbers == sorted(numbers)
    assert set(named) == {name for names in FLOORS for name in names}


@pytest.mark.parametrize("path", sorted((PACKAGE / "_core").rglob("*.py")), ids=lambda p: p.stem)
def test_imports_of_the_core_run_downwards(path: Path):
    here = path.relative_to(PACKAGE / "_core").parts[0].removesuffix(".py")
    if here != "__init__":
        below = CORE[CORE.index(here) :]
        assert imported_parts(path, "_core") <= set(below)


def test_plans_are_made_without_running_them():
    for path in sorted((PACKAGE / "execution" / "plan").glob("*.py")):
        assert not imported_parts(path, "execution") & {"run", "tiling", "gradients"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_extras_are_imported_where_they_are_needed(path: Path):
    if part_of(path) in PARTS_OF_LIGHTNING:
        return
    top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    assert not top & EXTRAS


def test_every_file_has_a_docstring():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def loaded(statement: str) -> set[str]:
    """The top-level packages that are loaded after a statement in a new process."""
    words = f"{statement}; import sys; print(*sorted({{n.partition('.')[0] for n in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) - sys.stdlib_module_names


def test_an_import_of_the_package_loads_nothing_but_torch():
    assert loaded("import neurenix_ms") - loaded("import torch") == {"neurenix_ms"}
