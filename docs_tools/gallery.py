"""Small copies of the tutorials' figures for the landing page.

    python -m docs_tools.gallery

runs the tutorials and writes their figures to the assets of the site.
"""

import contextlib
import io
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from docs_tools.source import PYTHON_BLOCK, ROOT

TUTORIALS = ("segmentation", "features")
DPI = 60
COLORS = 48


def picture(page: Path, target: Path) -> None:
    """Run a page up to the matplotlib figure called `figure`, and write it to a file.

    Args:
        page: Markdown with Python blocks.
        target: Path of the PNG file.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in PYTHON_BLOCK.finditer(page.read_text("utf-8")):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(textwrap.dedent(block[3]), page, "exec"), names)
        if "figure" in names:
            drawn = io.BytesIO()
            names["figure"].savefig(drawn, dpi=DPI, facecolor="white")
            Image.open(drawn).convert("RGB").quantize(COLORS).save(target, optimize=True)
            return
    raise ValueError(f"a page must draw a figure, got none in {page}")


if __name__ == "__main__":
    for name in TUTORIALS:
        picture(
            ROOT / "docs" / "tutorials" / f"{name}.md", ROOT / "docs" / "assets" / f"{name}.png"
        )
