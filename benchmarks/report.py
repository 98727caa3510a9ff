"""The JSON of a benchmark run becomes a Markdown table or a bar chart for the site."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from docs_tools.drawings import ACCENT, INK, svg, text

RESULTS = Path(__file__).parents[1] / "docs" / "assets" / "benchmarks.json"
BASELINE = "plain"
WIDTH = 360  # of a chart; about a telephone's screen


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
    report = Report(json_path)
    if group is not None:
        return f"{report.machine}\n\n{_group_table(report.rows(group))}"
    parts = [f"### {name}\n\n{_group_table(report.rows(name))}" for name in report.groups]
    return "\n\n".join([report.machine, *parts])


def bars(json_path: str | Path, group: str, field: str) -> str:
    """A bar per case, the plain way in gray.

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
    report = Report(json_path)
    rows = [row for row in report.rows(group) if row.value(field) is not None]
    if not rows:
        raise ValueError(f"group {group!r} has no value of {field!r}")
    title, show = COLUMNS.get(field, (field, _number))
    largest = max(row.value(field) for row in rows) or 1
    parts = []
    for i, row in enumerate(rows):
        y, value = 30 * i, row.value(field)
        color = f'fill="{INK}" fill-opacity="0.4"' if row.is_baseline else f'fill="{ACCENT}"'
        length = max(1, WIDTH * value / largest)
        parts.append(text(row.label, 0, y + 11, anchor="start"))
        parts.append(text(show(value), WIDTH, y + 11, anchor="end"))
        parts.append(f'<rect x="0" y="{y + 15}" width="{length:.1f}" height="9" rx="1" {color}/>')
    drawing = svg(parts, WIDTH, 30 * len(rows), title=f"{group}: {title}")
    return f"{report.machine}\n\n{drawing}"


class Report:
    """One run: where it was made, and its cases by group."""

    def __init__(self, json_path: str | Path) -> None:
        content = json.loads(Path(json_path).read_text(encoding="utf-8"))
        self.machine = _machine(content["machine_info"])
        cases = content["benchmarks"]
        resident = _resident_peaks(Path(json_path))
        for case in cases:
            case["extra_info"] |= resident.get(case.get("fullname"), {})
        self.groups: dict[str, list[Row]] = {case["group"]: [] for case in cases}
        for case in cases:
            self.groups[case["group"]].append(Row(case))

    def rows(self, group: str) -> list["Row"]:
        if group not in self.groups:
            raise ValueError(f"group must be one of {list(self.groups)}, got {group!r}")
        for row in self.groups[group]:
            same = (other for other in self.groups[group] if other.setting == row.setting)
            variants = {other.variant: other for other in same}
            row.baseline = variants.get(BASELINE, variants.get("ours"))
        return self.groups[group]


class Row:
    """One case: its parameters, what was measured, and the plain way to do the same."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        params = dict(case.get("params") or {})
        self.variant = str(params.pop("variant", case["name"]))
        self.setting = params
        self.is_baseline = self.variant == BASELINE
        self.baseline: Row | None = None
        self.spread = case["stats"].get("iqr")
        self.measured = {**case["extra_info"], "time": case["stats"]["median"]}

    @property
    def label(self) -> str:
        return " · ".join([self.variant, *(f"{name} {x}" for name, x in self.setting.items())])

    def value(self, field: str) -> Any:
        return self.measured.get(field)

    def cell(self, field: str, show: Callable[[float], str]) -> str:
        value = self.value(field)
        if value is None or (field == "share_of_matmul" and value == 0):
            return "-"
        text = show(value)
        if field == "time" and self.spread is not None:
            text += f" ± {show(self.spread)}"
        ratio = self.ratio(field)
        return text if ratio is None else f"{text} ({ratio:.2f}x)"

    def ratio(self, field: str) -> float | None:
        """The value over that of the plain way; times as measured in pairs, where they were."""
        if self.baseline is None or self.baseline is self or field == "share_of_matmul":
            return None
        if field == "time" and self.value("time_ratio") is not None:
            return self.value("time_ratio")
        value, reference = self.value(field), self.baseline.value(field)
        return value / reference if value is not None and reference else None


def _group_table(rows: list[Row]) -> str:
    settings = list(dict.fromkeys(name for row in rows for name in row.setting))
    fields = [name for name in COLUMNS if any(row.value(name) is not None for row in rows)]
    heads = [*settings, "variant", *(COLUMNS[name][0] for name in fields)]
    rules = ["---"] * (len(settings) + 1) + ["--:"] * len(fields)
    lines = [heads, rules]
    for row in rows:
        cells = [str(row.setting.get(name, "-")) for name in settings]
        lines.append([*cells, row.variant, *(row.cell(name, COLUMNS[name][1]) for name in fields)])
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _machine(info: Mapping[str, Any]) -> str:
    cpu = info.get("cpu", {})
    rates = (info.get("matmul_flops_per_s") or {}).items()
    threads = info.get("threads", "?")
    facts = [
        cpu.get("brand_raw") or info.get("processor") or info.get("machine") or "unknown processor",
        f"{cpu.get('count', '?')} cores",
        f"torch {info.get('torch', '?')}",
        f"{threads} thread{'' if threads == 1 else 's'}",
        f"oneDNN {'on' if info.get('mkldnn') else 'off'}",
        *([info["gpu"]] if info.get("gpu") else []),
        *(f"{rate / 1e9:.0f} GFLOP/s in products of {dtype} matrices" for dtype, rate in rates),
        f"Python {info.get('python_version', '?')}",
    ]
    return f"Measured on: {_plain(', '.join(facts))}."


def _resident_peaks(json_path: Path) -> dict[str, dict[str, float]]:
    """Resident memory by case, from the run beside this one that measured it."""
    beside = json_path.with_name(f"{json_path.stem}_resident.json")
    if not beside.exists():
        return {}
    cases = json.loads(beside.read_text(encoding="utf-8"))["benchmarks"]
    field = "resident_peak_bytes"
    return {case["fullname"]: {field: case["extra_info"][field]} for case in cases}


def _plain(words: str) -> str:
    """A bar ends a cell; `*` and `_` would start emphasis."""
    for mark in "\\|*_":
        words = words.replace(mark, f"\\{mark}")
    return words


def _scaled(value: float, units: tuple[str, ...], step: float) -> str:
    place = 0
    while place + 1 < len(units) and value >= step:
        value, place = value / step, place + 1
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[place]}".rstrip()


def _time(seconds: float) -> str:
    return _scaled(seconds * 1e6, ("µs", "ms", "s"), 1000)


def _bytes(count: float) -> str:
    return _scaled(count, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def _flops(count: float) -> str:
    return _scaled(count, ("", "K", "M", "G", "T"), 1000)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "time": ("median time", _time),
    "items_per_s": ("items per second", _number),
    "share_of_matmul": ("of the rate of matrix products", _share),
    "tensor_peak_bytes": ("peak of live tensors", _bytes),
    "resident_peak_bytes": ("peak of resident memory", _bytes),
    "flops": ("conv and matmul FLOPs", _flops),
    "params": ("parameters", _number),
}
