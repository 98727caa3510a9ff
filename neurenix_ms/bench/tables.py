"""Tables of results: Markdown, CSV, and text for a terminal."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from neurenix_ms.bench.results import (
    COLUMNS,
    LARGEST,
    Report,
    Row,
    in_bytes,
    in_operations,
    in_seconds,
)

SHORT = {
    "time": "time",
    "tensor_peak_bytes": "live tensors",
    "resident_peak_bytes": "memory",
    "flops": "FLOPs",
    "params": "parameters",
    "error": "difference",
}
GROWING = {"time": in_seconds, "tensor_peak_bytes": in_bytes, "flops": in_operations}


def as_markdown(report: Report, group: str | None = None) -> str:
    """Return every case of a group, or of all groups, with its ratio to a reference.

    Args:
        report: A run.
        group: Group of cases, for example "pooling/forward"; all of them if None.

    Returns:
        The machine, then a table, with the name of the group above it if all are shown.

    Raises:
        ValueError: If there is no such group.
    """
    machine = in_plain(report.machine)
    if group is not None:
        return f"{machine}\n\n{group_table(report.rows(group))}"
    parts = []
    for name in report.groups:
        rows = report.rows(name)
        note = left_out(rows)
        below = [part for part in (growth_table(rows), note and in_plain(note)) if part]
        parts.append("\n\n".join([f"### {name}\n\n{group_table(rows)}", *below]))
    return "\n\n".join([machine, *parts])


def group_table(rows: Sequence[Row]) -> str:
    """Return the cases of a group as a table in Markdown."""
    lines = [list(line) for line in cells(rows, COLUMNS)]
    numbers = len([name for name in COLUMNS if _is_measured(rows, name)])
    lines.insert(1, ["---"] * (len(lines[0]) - numbers) + ["--:"] * numbers)
    return "\n".join(f"| {' | '.join(in_plain(cell) for cell in line)} |" for line in lines)


def growth_table(rows: Sequence[Row]) -> str | None:
    """Return exponents of time, peak and operations in each number that a group varies, if any.

    An exponent of 1 means that twice the number takes twice as much. It is the slope of the straight
    line through the logarithms, over all cases that are equal otherwise.
    """
    lines = []
    for name in varied_numbers(rows):
        for others, cases in series(rows, name):
            xs = [float(row.setting[name]) for row in cases]
            found = [exponent(xs, [row.value(field) for row in cases]) for field in GROWING]
            if any(x is not None for x in found):
                powers = " | ".join("-" if x is None else f"{x:.2f}" for x in found)
                lines.append(
                    f"| {in_plain(others)} | {name} | {min(xs):g} to {max(xs):g} | {powers} |"
                )
    if not lines:
        return None
    heads = "| way | in | from | time | peak | operations |\n|---|---|---|--:|--:|--:|"
    return "\n".join(["How cost grows (exponents):", "", heads, *lines])


def left_out(rows: Sequence[Row]) -> str | None:
    """Return the operators that are not counted, by variant; None if there are none."""
    by_way: dict[str, dict[str, None]] = {}
    for row in rows:
        by_way.setdefault(row.variant, {}).update(dict.fromkeys(row.value("uncounted") or ()))
    ways: dict[tuple[str, ...], list[str]] = {}
    for way, names in by_way.items():
        ways.setdefault(tuple(names), []).append(way)
    lines = [f"{', '.join(of)}: {', '.join(names)}" for names, of in ways.items() if names]
    return "Not in the FLOPs: " + "; ".join(lines) + "." if lines else None


def as_csv(report: Report) -> str:
    """Return all cases of all groups, one line each, with every figure in full and every ratio.

    Args:
        report: A run.
    """
    everything = [(name, row) for name in report.groups for row in report.rows(name)]
    settings = list(dict.fromkeys(key for _, row in everything for key in row.setting))
    fields = [name for name in COLUMNS if _is_measured([row for _, row in everything], name)]
    divided = [name for name in fields if any(row.ratio(name) is not None for _, row in everything)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ratios = [f"{name}_ratio" for name in divided]
    writer.writerow(["group", "variant", *settings, *fields, *ratios, "uncounted"])
    for group, row in everything:
        values = [row.setting.get(key, "") for key in settings]
        values += [row.value(name) for name in fields] + [row.ratio(name) for name in divided]
        uncounted = " ".join(row.value("uncounted") or ())
        line = [group, row.variant, *values, uncounted]
        writer.writerow(["" if value is None else value for value in line])
    return out.getvalue()


def as_text(content: Mapping[str, Any]) -> str:
    """Return the groups of a run as tables for a terminal.

    Args:
        content: The JSON of a run.
    """
    report = Report(content)
    parts = []
    for name in report.groups:
        rows = report.rows(name)
        below = [f"  {part}" for part in (left_out(rows),) if part]
        parts.append("\n".join([name, *aligned(cells(rows, SHORT)), *below]))
    return "\n\n".join(parts)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells with columns of one width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out = []
    for line in lines:
        pairs = list(zip(line, widths, strict=True))
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(pairs)]
        out.append("  " + "  ".join(padded).rstrip())
    return out


def cells(rows: Sequence[Row], columns: Mapping[str, Any]) -> list[list[str]]:
    """Return the head and a line per case: varied values, variant and measured figures."""
    settings = list(dict.fromkeys(name for row in rows for name in row.setting))
    fields = [name for name in columns if _is_measured(rows, name)]
    heads = [columns[f] if isinstance(columns[f], str) else columns[f][0] for f in fields]
    lines = [[*settings, "variant", *heads]]
    for row in rows:
        varied = [str(row.setting.get(name, "-")) for name in settings]
        lines.append([*varied, row.variant, *(row.shown(field) for field in fields)])
    return lines


def exponent(xs: Sequence[float], ys: Sequence[float | None]) -> float | None:
    """Return the slope of the straight line through the logarithms; None where there is none."""
    if not all(ys) or len(set(xs)) < 2 or min(xs) <= 0:
        return None
    logs = [math.log(y) for y in ys if y]
    return statistics.linear_regression([math.log(x) for x in xs], logs).slope


def varied_numbers(rows: Sequence[Row]) -> list[str]:
    """Return the names of the numbers that a group varies, as "size"."""
    return list(dict.fromkeys(name for row in rows for name in row.setting))


def series(rows: Sequence[Row], name: str) -> list[tuple[str, list[Row]]]:
    """Return cases that differ in one number only, three of them or more, by what they share."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if _is_finite(row.setting.get(name)):
            shared = [f"{key} {x}" for key, x in row.setting.items() if key != name]
            found.setdefault(" · ".join([row.variant, *shared]), []).append(row)
    return [(words, cases) for words, cases in found.items() if len(cases) > 2]


def in_plain(words: str) -> str:
    """Escape what Markdown would read as a mark: a bar ends a cell, `*` and `_` stress."""
    for mark in "\\|*_":
        words = words.replace(mark, f"\\{mark}")
    return words


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def _is_measured(rows: Sequence[Row], field: str) -> bool:
    return any(row.value(field) is not None for row in rows)
