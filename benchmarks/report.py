"""The stored run as Markdown tables and bar charts for the site."""

from pathlib import Path

from neurenix_ms.bench import charts, tables
from neurenix_ms.bench.results import read
from neurenix_ms.bench.tables import in_plain

RESULTS = Path(__file__).parents[1] / "docs" / "assets" / "benchmarks.json"


def table(json_path: str | Path, group: str | None = None) -> str:
    """Every case of a group, or of all groups, with its ratio to the plain way where there is one.

    The plain way is the case with the variant "plain" and otherwise equal parameters.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        group: The question, for example "pooling/forward"; all of them if None.

    Returns:
        Markdown: the machine, then a table, with the name of the group above it if all are shown.

    Raises:
        ValueError: If the file has no such group.
    """
    return tables.as_markdown(read(json_path), group)


def bars(json_path: str | Path, group: str, field: str) -> str:
    """A bar per case, the plain way in grey.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        group: The question, for example "pooling/forward".
        field: "time" (the median of the rounds), or what `measure` recorded, for example
            "tensor_peak_bytes".

    Returns:
        The machine in Markdown, then inline SVG.

    Raises:
        ValueError: If the file has no such group, or none of its cases has the field.
    """
    report = read(json_path)
    return f"{in_plain(report.machine)}\n\n{charts.bars(report.rows(group), group, field)}"
