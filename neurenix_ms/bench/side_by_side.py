"""Comparison of two runs of the same benchmarks, case by case."""

from neurenix_ms.bench.results import COLUMNS, Report, Row
from neurenix_ms.bench.tables import aligned

FIELDS = ("time", "tensor_peak_bytes", "flops")
NOTABLE = {"time": 0.1, "tensor_peak_bytes": 0.0, "flops": 0.0}  # a smaller change of time is noise


def as_text(before: Report, after: Report, everything: bool = False) -> str:
    """Time, live tensors and operations before and after, with their ratios, as text.

    Args:
        before: The first run.
        after: The second.
        everything: Also show unchanged cases.
    """
    old, new = by_name(before), by_name(after)
    shared = [name for name in new if name in old]
    lines = [["case"]]
    lines[0] += [
        f"{COLUMNS[field][0]}, before" if i == 0 else "after" for field in FIELDS for i in (0, 1)
    ]
    for name in shared:
        if everything or any(_is_notable(old[name], new[name], field) for field in FIELDS):
            lines.append([name, *_cells(old[name], new[name])])
    unchanged = len(shared) - len(lines) + 1
    words = [f"before: {before.machine}", f"after: {after.machine}", ""]
    if len(lines) > 1:
        words += aligned(lines)
    if unchanged:
        words.append(
            f"  {unchanged} of {len(shared)} cases: no change of bytes, operations, or a tenth of time"
        )
    for only, other, title in ((old, new, "before"), (new, old, "after")):
        missing = [name for name in only if name not in other]
        if missing:
            words.append(f"  only {title}: {', '.join(missing)}")
    return "\n".join(words)


def by_name(report: Report) -> dict[str, Row]:
    """Return the cases of a run by their full names."""
    return {row.fullname: row for name in report.groups for row in report.rows(name)}


def change(old: Row, new: Row, field: str) -> float | None:
    """Return a figure after, divided by that before; None if it was not measured or was 0."""
    a, b = old.value(field), new.value(field)
    return b / a if a and b is not None else None


def _is_notable(old: Row, new: Row, field: str) -> bool:
    ratio = change(old, new, field)
    if ratio is None:
        return bool(old.value(field)) != bool(new.value(field))
    return abs(ratio - 1) > NOTABLE[field]


def _cells(old: Row, new: Row) -> list[str]:
    cells = []
    for field in FIELDS:
        show = COLUMNS[field][1]
        before, after = (row.value(field) for row in (old, new))
        ratio = change(old, new, field)
        cells.append("-" if before is None else show(before))
        times = "" if ratio is None else f" ({ratio:.2f}x)"
        cells.append("-" if after is None else f"{show(after)}{times}")
    return cells
