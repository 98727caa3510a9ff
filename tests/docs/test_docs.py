"""The code of every page runs, and every public name is on an API page."""

import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
from pages import PAGES, ROOT

import neurenix_ms
from docs_tools.source import PYTHON_BLOCK

PACKAGES = ["neurenix_ms"] + [
    package.name
    for package in pkgutil.iter_modules(neurenix_ms.__path__, "neurenix_ms.")
    if package.ispkg
]


def run_page(page: Path) -> int:
    """Run all blocks in one namespace, with the line numbers of the page, and return their number."""
    content = page.read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    blocks = list(PYTHON_BLOCK.finditer(content))
    for block in blocks:
        lines_before = content.count("\n", 0, block.start(3))
        code = "\n" * lines_before + textwrap.dedent(block[3])
        exec(compile(code, page, "exec"), namespace)
    return len(blocks)


def is_run_by_the_build(page: Path) -> bool:
    """Return whether `make docs`, which is strict, runs half of the blocks of the page or more."""
    blocks = list(PYTHON_BLOCK.finditer(page.read_text(encoding="utf-8")))
    return (
        2 * sum('exec="on"' in block[0].partition("\n")[0] for block in blocks) >= len(blocks) > 0
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.slow] if is_run_by_the_build(page) else [],
        )
        for page in PAGES
    ],
)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_an_error_shows_the_line_of_the_page(tmp_path: Path):
    page = tmp_path / "page.md"
    first = '```python exec="on"\nx = 1\n```\n'
    second = "    ```python\n    if x:\n        1 / 0\n    ```\n"
    page.write_text(f'# Title\n\n{first}\n=== "Tab"\n\n{second}')
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno + 1 == 11
    page.write_text(page.read_text().replace("1 / 0", "pass"))
    assert run_page(page) == 2


def documented() -> set[str]:
    pages = (ROOT / "docs" / "api").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_is_on_an_api_page(package: str):
    shown = {path.rpartition(".")[2] for path in documented()}
    public = getattr(importlib.import_module(package), "__all__", [])
    assert [name for name in public if name not in shown] == []


@pytest.mark.parametrize("path", sorted(documented()))
def test_what_is_on_an_api_page_is_public(path: str):
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    assert name in getattr(module, "__all__", vars(module))
