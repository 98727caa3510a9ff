"""Notebooks of the tutorials: a mkdocs hook, and a command that runs them.

    python -m docs_tools.notebooks runs/notebooks

writes the notebooks with their outputs.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode, v4, write

from docs_tools.source import PYTHON_BLOCK, ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
OPTIONS = re.compile(r"^( *`{3,}python)\b([^\n]*)$", re.MULTILINE)
OTHER = re.compile(r"^`{3,}(?!python\b)(\w[^\n]*)$(.*?)^`{3,}$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
LINK = '<p><a href="../{0}.ipynb" download>Download this page as a notebook</a></p>'


def notebook(page: Path) -> NotebookNode:
    """Return a tutorial as a notebook without outputs.

    Args:
        page: Markdown with Python blocks, as `markdown-exec` takes them.
    """
    text = SNIPPET.sub(lambda found: (ROOT / found[1]).read_text("utf-8"), page.read_text("utf-8"))
    draws = ['html="on"' in block[0].split("\n")[0] for block in PYTHON_BLOCK.finditer(text)]
    # jupytext makes cells of code between backticks; code in other languages is only text
    text = OTHER.sub(r"~~~\1\2~~~", OPTIONS.sub(r"\1", text))
    made = jupytext.reads(text, fmt="md")
    cells, code = [], iter(draws)
    for cell in made.cells:
        shows_html = cell.cell_type == "code" and next(code)
        if shows_html:  # prints HTML, which a notebook does not display by itself
            cell.source = f"%%capture drawing\n{cell.source}"
        cells.append(cell)
        if shows_html:
            show = "from IPython.display import HTML\n\nHTML(drawing.stdout)"
            cells.append(v4.new_code_cell(show))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Insert the link after the title of a tutorial; called by mkdocs."""
    path = Path(page.file.abs_src_path or "")
    if path not in TUTORIALS:
        return markdown
    title, _, rest = markdown.partition("\n\n")
    return f"{title}\n\n{LINK.format(path.stem)}\n\n{rest}"


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Write the notebooks next to the pages; called by mkdocs."""
    for page in TUTORIALS:
        write(notebook(page), Path(config.site_dir) / "tutorials" / f"{page.stem}.ipynb")


def run(page: Path, target: Path) -> None:
    """Run a notebook in an empty folder and write it with its outputs."""
    from nbclient import NotebookClient

    made = notebook(page)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(made, timeout=600, resources={"metadata": {"path": folder}}).execute()
    write(made, target)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for page in TUTORIALS:
        run(page, out / f"{page.stem}.ipynb")
