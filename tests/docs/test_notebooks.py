"""Every tutorial is also a notebook."""

import textwrap
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="needs the extra docs")

import nbformat

from docs_tools import notebooks
from docs_tools.source import PYTHON_BLOCK

EVERY = pytest.mark.parametrize("page", notebooks.TUTORIALS, ids=lambda page: page.stem)


@EVERY
def test_a_notebook_has_the_code_of_its_page(page: Path):
    made = notebooks.notebook(page)
    nbformat.validate(made)
    assert made.cells[0].cell_type == "markdown"
    assert made.cells[0].source.startswith("# ")
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    code = [cell.removeprefix("%%capture drawing\n") for cell in code if "IPython" not in cell]
    blocks = [textwrap.dedent(block[3]) for block in PYTHON_BLOCK.finditer(page.read_text("utf-8"))]
    assert [cell.strip() for cell in code] == [block.strip() for block in blocks]
    assert not any("--8<--" in cell.source for cell in made.cells)


@pytest.mark.slow
@EVERY
def test_a_notebook_runs(page: Path, tmp_path: Path):
    pytest.importorskip("ipykernel")
    notebooks.run(page, tmp_path / "made.ipynb")
    made = nbformat.read(tmp_path / "made.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in made.cells)
