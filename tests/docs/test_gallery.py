"""Figures of the landing page come from the linked tutorials."""

import re
from pathlib import Path

import pytest

from docs_tools.gallery import TUTORIALS, picture
from docs_tools.source import ROOT

DRAWS = """
```python
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
```

```python exec="on"
figure, axis = plt.subplots(figsize=(2, 1))
```

```python
raise RuntimeError("what follows the picture is not run")
```
"""


def test_a_page_is_run_up_to_its_picture(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(DRAWS)
    picture(page, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_figure_raises(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n")
    with pytest.raises(ValueError, match="must draw a figure, got none in"):
        picture(page, tmp_path / "page.png")


def test_every_tutorial_stands_in_the_gallery_with_a_picture():
    gallery = (ROOT / "docs" / "index.md").read_text("utf-8").partition("## Gallery")[2]
    pages = re.findall(r"tutorials/\w+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert [page for page in pages if f"]({page})" not in gallery] == []
    for name in TUTORIALS:
        assert f"](assets/{name}.png)](tutorials/{name}.md)" in gallery
        assert (ROOT / "docs" / "assets" / f"{name}.png").stat().st_size < 60_000
