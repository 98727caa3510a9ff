"""The house: which room may import which. Imports run downwards only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neurenix_ms"

# from top to bottom; a room may import rooms of lower floors, and those named with it
FLOORS = [
    ["__init__", "compat", "recipes"],
    ["weights"],
    ["multiscale", "msnet", "timestepping", "implicit"],
    ["datasets", "training", "files"],
    ["execution", "backbones", "conservation", "stored"],
    [
        "blocks",
        "mlp",
        "layers",
        "grids",
        "resize",
        "checkpointing",
        "recomputation",
        "meter",
        "orders",
        "sizes",
        "nd",
        "convolution",
        "remember",
        "config",
        "records",
        "opcodes",
        "arguments",
        "checks",
        "hooks",
        "inplace",
        "probing",
        "tracing",
    ],
]
GROUND = FLOORS[-1]
EXTRAS = {
    "lightning",
    "torchmetrics",
    "porespy",
    "taufactor",
    "scipy",
    "matplotlib",
    "timm",
    "tqdm",
    "torchdiffeq",
}
ROOM_OF_LIGHTNING = "training"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "neurenix_ms" or len(parts) < 2:
            continue
        there = (
            parts[1]
            if (PACKAGE / parts[1]).exists() or (PACKAGE / f"{parts[1]}.py").exists()
            else "__init__"
        )
        if there == here:
            continue
        down = floor(there) > floor(here)
        beside_on_the_ground = here in GROUND and GROUND.index(there) > GROUND.index(here)
        # a recipe is a user of the front door
        assert down or beside_on_the_ground or here in ("recipes", "compat"), f"{here} -> {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_extras_are_imported_where_they_are_needed(path: Path):
    if room(path) in (ROOM_OF_LIGHTNING, "recipes"):
        return
    top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    assert not top & EXTRAS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_two_ideas(path: Path):
    assert len(path.read_text().splitlines()) <= 300


def test_every_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
