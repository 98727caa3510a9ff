"""Facts that several files state are the same in all: the version, and the extras."""

import re
import tomllib

from pages import ROOT

import neurenix_ms as nms
from docs_tools.footer import version

BIBTEX = re.compile(r"```bibtex\n(.*?)```", re.DOTALL)


def test_the_version_is_the_same_everywhere():
    assert version() == nms.__version__
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited == nms.__version__
    entries = [
        BIBTEX.findall((ROOT / name).read_text("utf-8")) for name in ("README.md", "docs/index.md")
    ]
    assert len(entries[0]) == 1
    assert entries[0] == entries[1]
    assert f"version = {{{nms.__version__}}}" in entries[0][0]


def test_every_extra_is_on_the_page_of_the_installation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "start.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(project["optional-dependencies"])
