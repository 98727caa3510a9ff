"""List every public name with its first sentence, for the API index."""

import re
from collections.abc import Iterator

import griffe

from docs_tools.source import PACKAGE, ROOT

PAGES = ROOT / "docs" / "api"
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)


def index() -> str:
    """Return one table per page of the reference, as Markdown."""
    package = griffe.load("neurenix_ms", search_paths=[PACKAGE.parent], resolve_aliases=True)
    return "\n\n".join("\n".join(_table(package, page)) for page in _pages())


def _pages() -> list[str]:
    """Return the names of the pages in the order of the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    return [name for name in re.findall(r"api/(\w+)\.md", navigation) if name != "index"]


def _table(package: griffe.Object | griffe.Alias, page: str) -> Iterator[str]:
    text = (PAGES / f"{page}.md").read_text("utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    yield f"## [{title[1] if title else page}]({page}.md)\n"
    yield "| name | summary |\n|---|---|"
    for path in ENTRY.findall(text):
        found = package[path.partition(".")[2]]
        summary = found.docstring.value.split("\n\n")[0] if found.docstring else ""
        yield f"| [`{found.name}`][{path}] | {' '.join(summary.split())} |"
