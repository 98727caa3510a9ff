"""Markdown tables and bar charts of the stored run, for the site."""

from pathlib import Path

from neurenix_ms.bench import charts, tables
from neurenix_ms.bench.results import Report, read
from neurenix_ms.bench.tables import in_plain

CAPTION = (
    "Median of a call ± interquartile range of its time; peak of live tensors; billions (G) or "
    "millions (M) of operations; in brackets divided by plain."
)
RESULTS = Path(__file__).parents[1] / "docs" / "assets" / "benchmarks.json"


def table(json_path: str | Path, group: str | None = None) -> str:
    """Return a table of the cases of a group, or of all groups, with ratios to the plain variant.

    The reference is the case with the variant "plain" and otherwise equal parameters.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        group: Name of the group, for example "pooling/forward"; all groups if None.

    Returns:
        Markdown: the machine, then a table with its caption; of all groups, with their names.

    Raises:
        ValueError: If the file has no such group.
    """
    return _captioned(read(json_path), group)


def measured(json_path: str | Path, *groups: str) -> str:
    """Return the tables of those groups that a run has, or a line that says that it has none.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        groups: Names of the groups.

    Returns:
        Markdown, without the machine; a name precedes its table if several groups are asked for.
    """
    report = read(json_path)
    known = [name for name in groups if name in report.groups]
    if not known:
        return f"*Not measured in this run:* {', '.join(f'`{name}`' for name in groups)}."
    tables_of = {name: _captioned(report, name).partition("\n\n")[2] for name in known}
    if len(groups) == 1:
        return tables_of[known[0]]
    return "\n\n".join(f"### {name}\n\n{text}" for name, text in tables_of.items())


def _captioned(report: Report, group: str | None) -> str:
    """Return the table of a group with a caption that says what its numbers are."""
    text = tables.as_markdown(report, group)
    if group is None:
        return text
    machine, _, rows = text.partition("\n\n")
    return f"{machine}\n\nTable: {group}. {CAPTION}\n\n{rows}"


def bars(json_path: str | Path, group: str, field: str) -> str:
    """Return a bar chart with one bar per case, the plain variant in gray.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        group: Name of the group, for example "pooling/forward".
        field: "time" (the median of the rounds), or what `measure` recorded, for example
            "tensor_peak_bytes".

    Returns:
        The machine in Markdown, then inline SVG.

    Raises:
        ValueError: If the file has no such group, or none of its cases has the field.
    """
    report = read(json_path)
    return f"{in_plain(report.machine)}\n\n{charts.bars(report.rows(group), group, field)}"
