"""Results of one run, read from a JSON file of pytest-benchmark."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurenix_ms._core.checks import shown

BENCH_FORMAT = 1  # of what the plugin writes
KEY = "neurenix_ms_bench"  # what the plugin adds to the file
KINDS = {dict: "an object", list: "a list", str: "a string", float: "a number"}  # of JSON
LARGEST = 1e300  # of a figure
PLAIN, OURS = "plain", "ours"  # the references of cases that name none


class Report:
    """One run: where it was made, and its cases by group.

    Args:
        content: The JSON of a run, as it was read.
        resident: Peaks of resident memory that were measured in another run, by case.
    """

    def __init__(
        self, content: Mapping[str, Any], resident: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        about = {**(content.get("machine_info") or {}), **(content.get(KEY) or {})}
        self.machine = _machine(about)
        self.groups: dict[str, list[Row]] = {}
        for case in content["benchmarks"]:
            added = (resident or {}).get(case.get("fullname"), {})
            row = Row({**case, "extra_info": {**(case.get("extra_info") or {}), **added}})
            self.groups.setdefault(case.get("group") or case["name"].partition("[")[0], []).append(
                row
            )
        for rows in self.groups.values():
            _find_baselines(rows)

    def rows(self, group: str) -> list["Row"]:
        """Return the cases of a group.

        Raises:
            ValueError: If there is no such group.
        """
        if group not in self.groups:
            raise ValueError(f"group must be one of {list(self.groups)}, got {group!r}")
        return self.groups[group]


class Row:
    """One case: its parameters, its figures, and the variant that it is compared with."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        params = dict(case.get("params") or {})
        self.fullname: str = case.get("fullname") or case["name"]
        self.variant = str(params.pop("variant", case["name"]))
        self.setting = params
        self.baseline: Row | None = None
        stats = case.get("stats") or {}
        self.spread = stats.get("iqr")
        self.measured = {**case["extra_info"], "time": stats.get("median")}

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.variant == (self.value("reference") or PLAIN)

    @property
    def label(self) -> str:
        """The variant, and the varied values."""
        return " · ".join([self.variant, *(f"{name} {x}" for name, x in self.setting.items())])

    def value(self, field: str) -> Any:
        """Return a figure, or None if it was not measured."""
        return self.measured.get(field)

    def shown(self, field: str) -> str:
        """Return a figure with its unit, its spread, and its ratio to the baseline."""
        value = self.value(field)
        if value is None or (field == "share_of_matmul" and value == 0):
            return "-"
        show = COLUMNS[field][1]
        words = show(value)
        if field == "time" and self.spread is not None:
            words += f" ± {show(self.spread)}"
        ratio = self.ratio(field)
        return words if ratio is None else f"{words} ({ratio:.2f}x)"

    def ratio(self, field: str) -> float | None:
        """Return the figure divided by that of the baseline; for times, the paired ratio if measured."""
        if self.baseline is None or self.baseline is self or field in NEVER_DIVIDED:
            return None
        if field == "time" and self.value("time_ratio") is not None:
            return self.value("time_ratio")
        value, reference = self.value(field), self.baseline.value(field)
        return value / reference if value is not None and reference else None


def read(path: str | Path) -> Report:
    """Return a run that was written by `pytest --benchmark-json` or `--benchmark-save`.

    Resident memory is taken from the file `..._resident.json` beside it, if there is one.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no such file, or was written by a newer version.
    """
    path = Path(path)
    content = load_content(path)
    beside = path.with_name(f"{path.stem}_resident.json")
    field = "resident_peak_bytes"
    resident = {}
    for case in load_content(beside)["benchmarks"] if beside.exists() else ():
        measured = case.get("extra_info") or {}
        if field in measured and case.get("fullname") is not None:
            resident[case["fullname"]] = {field: measured[field]}
    return Report(content, resident)


def load_content(path: Path) -> dict[str, Any]:
    """Return the JSON of a run.

    Raises:
        ValueError: If it is no such file, a value in it is of another kind, or it was written by a newer
            version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a file that pytest --benchmark-json has written, got {error}"
        ) from None
    cases = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not all(isinstance(c, dict) and "name" in c for c in cases):
        raise ValueError(
            f"{path} must be a file that pytest --benchmark-json has written, got other JSON"
        )
    written = (_of(f"{path}", content, KEY, dict) or {}).get("format", BENCH_FORMAT)
    if written != BENCH_FORMAT:
        raise ValueError(
            f"{path} must have format {BENCH_FORMAT}, got {written}; read it with the version of "
            "neurenix_ms that wrote it, or measure again"
        )
    _check_machine(f"{path}", content)
    for i, case in enumerate(cases):
        _check_case(f"{path}: benchmarks[{i}]", case)
    return content


def _check_machine(place: str, content: Mapping[str, Any]) -> None:
    """Raise if a value of the machine is of another kind."""
    for key in ("machine_info", KEY):
        about, inside = _of(place, content, key, dict) or {}, f"{place}: {key}"
        for name in ("processor", "machine", "gpu"):
            _of(inside, about, name, str)
        _of(f"{inside}: cpu", _of(inside, about, "cpu", dict) or {}, "brand_raw", str)
        rates = _of(inside, about, "matmul_flops_per_s", dict) or {}
        for dtype in rates:
            _check_figure(f"{inside}: matmul_flops_per_s", rates, dtype)


def _check_case(place: str, case: Mapping[str, Any]) -> None:
    """Raise if a value of a case is of another kind."""
    for key in ("name", "fullname", "group"):
        _of(place, case, key, str)
    if case["name"] is None:
        raise ValueError(f"{place}: name must be a string, got None")
    _of(place, case, "params", dict)
    stats = _of(place, case, "stats", dict) or {}
    for key in ("median", "iqr"):
        _check_figure(f"{place}: stats", stats, key)
    measured = _of(place, case, "extra_info", dict) or {}
    place = f"{place}: extra_info"
    _of(place, measured, "reference", str)
    for key in ("time_ratio", *COLUMNS):
        if key != "error" or repr(measured.get(key)) not in ("inf", "nan"):  # of unequal results
            _check_figure(place, measured, key)
    for name in _of(place, measured, "uncounted", dict, list) or ():
        if not isinstance(name, str):
            raise ValueError(f"{place}: uncounted must be names of operators, got {shown(name)}")


def _of(place: str, values: Mapping[str, Any], key: str, *kinds: type) -> Any:
    """Return a value; raise unless it is of one of the kinds, None or missing."""
    value = values.get(key)
    taken = (*kinds, int) if float in kinds else kinds
    if value is not None and (not isinstance(value, taken) or isinstance(value, bool)):
        names = " or ".join(KINDS[kind] for kind in kinds)
        raise ValueError(f"{place}: {key} must be {names}, got {shown(value)}")
    return value


def _check_figure(place: str, values: Mapping[str, Any], key: str) -> None:
    """Raise unless a value is a finite number of at least 0, None or missing."""
    value = _of(place, values, key, float)
    if value is not None and not 0 <= value <= LARGEST:
        raise ValueError(f"{place}: {key} must be at least 0 and finite, got {shown(value)}")


def _find_baselines(rows: list[Row]) -> None:
    for row in rows:
        same = (other for other in rows if other.setting == row.setting)
        variants = {other.variant: other for other in same}
        named = row.value("reference")
        row.baseline = variants.get(named or PLAIN, variants.get(OURS))


def _machine(info: Mapping[str, Any]) -> str:
    cpu = info.get("cpu") or {}
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
    return f"Measured on: {', '.join(facts)}."


def _scaled(value: float, units: tuple[str, ...], step: float) -> str:
    place = 0
    while place + 1 < len(units) and value >= step:
        value, place = value / step, place + 1
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[place]}".rstrip()


def in_seconds(value: float) -> str:
    """Return a time with its unit."""
    return _scaled(value * 1e6, ("µs", "ms", "s"), 1000)


def in_bytes(value: float) -> str:
    """Return a number of bytes with its unit."""
    return _scaled(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def in_operations(value: float) -> str:
    """Return a number of operations, with K, M, G or T."""
    return _scaled(value, ("", "K", "M", "G", "T"), 1000)


def as_share(value: float) -> str:
    """Return a ratio as a percentage."""
    return f"{100 * value:.0f} %"


def as_number(value: float) -> str:
    """Return a number with commas, or three digits."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def as_error(value: float) -> str:
    """Return a difference with one digit."""
    return f"{value:.0e}" if value else "0"


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "time": ("median time", in_seconds),
    "items_per_s": ("items per second", as_number),
    "share_of_matmul": ("of the rate of matrix products", as_share),
    "tensor_peak_bytes": ("peak of live tensors", in_bytes),
    "resident_peak_bytes": ("peak of resident memory", in_bytes),
    "flops": ("conv and matmul FLOPs", in_operations),
    "params": ("parameters", as_number),
    "error": ("difference", as_error),
}
NEVER_DIVIDED = ("share_of_matmul", "error")
