"""Tables and curves of error, mass and intensity of predicted densities."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.recipes.reporting import markdown, save_figure

Result = dict[str, Any]
COLORS = {
    "nothing moves": "#9e9e9e",
    "semi-Lagrangian": "#212121",
    "semi-Lagrangian, corrected": "#757575",
    "double": "#00796b",
    "double, corrected": "#4db6ac",
    "single": "#c2571a",
    "double, mass kept": "#6a4c93",
    "double, mass in the loss": "#d81b60",
    "double, residual": "#1e6fb8",
    "double, seen sink": "#c2571a",
    "double, seen all": "#1e6fb8",
    "double, mass kept, seen all": "#8e9b1a",
}
SEEN_OTHERS = [name for name in COLORS if "seen" in name]


def error_table(result: Result) -> str:
    """Return a Markdown table of error, mass and costs of all methods on unseen eddies."""
    at = _times(result)
    head = ["method", *(f"error, {_hour(step)}" for step in at)]
    head.append(f"error of the mass, {_hour(at[-1])}")
    lines = [[*head, "parameters", "training"]]
    for name in _shown(result):
        way = result["ways"][name]
        errors = [_number(way, "eddies", "error", step) for step in at]
        mass = _number(way, "eddies", "mass off", at[-1], percent=True)
        lines.append([name, *errors, mass, *_costs(way)])
    noise = [f"{result['kinds']['eddies']['noise'][step]:.2f}" for step in at]
    lines.append(["(counting particles)", *noise, "", "", ""])
    return _joined(lines)


def intensity_table(result: Result) -> str:
    """Return a Markdown table of errors on all kinds of currents by training data, and of intensity."""
    _, early, *_, last = _times(result)
    head = ["method", *(f"{kind}: error, {_hour(early)}" for kind in result["kinds"])]
    asked = [("sink", "square"), ("sink", "peak"), ("eddies", "square")]
    words = {"square": "mean square", "peak": "peak"}
    lines = [[*head, *(f"{kind}: {words[key]}, {_hour(last)}" for kind, key in asked)]]
    for name in ("semi-Lagrangian, corrected", "double", "double, mass kept", *SEEN_OTHERS):
        if name in result["ways"]:
            way = result["ways"][name]
            errors = [_number(way, kind, "error", early) for kind in result["kinds"]]
            lines.append([name, *errors, *(_number(way, *pair, last) for pair in asked)])
    return _joined(lines)


def _shown(result: Result) -> list[str]:
    """Return the methods in the order of the colors, without those trained on other currents."""
    return [n for n in COLORS if n in result["ways"] and n not in SEEN_OTHERS]


def _times(result: Result) -> list[int]:
    """Return the first step, and those after a third, two thirds and all of the time."""
    steps = result["options"]["steps"]
    return [1, *(max(1, round(steps * share)) for share in (1 / 3, 2 / 3, 1))]


def _hour(step: int) -> str:
    return f"{step * INTERVAL:.0f} h"


def _number(way: Result, kind: str, key: str, step: int, *, percent: bool = False) -> str:
    """Format the mean over training runs, and the largest difference from it."""
    values = [run[kind][key][step - 1] for run in way["runs"]]
    mean, scale, digits = statistics.mean(values), 100 if percent else 1, 1 if percent else 2
    text = f"{scale * mean:.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * max(abs(value - mean) for value in values):.{digits}f}"
    return text + (" %" if percent else "")


def _costs(way: Result) -> list[str]:
    cpu = [run["cpu"] for run in way["runs"] if "cpu" in run]
    count = f"{way['parameters']:,}" if "parameters" in way else ""
    return [count, f"{statistics.mean(cpu):.0f} s" if cpu else ""]


def _joined(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    rule = [":---"] + ["---:"] * (len(head) - 1)
    return markdown((head, rule, *others))


def draw_errors(path: Path, result: Result) -> None:
    """Draw error and mass of every method on unseen eddies over time.

    Args:
        path: PNG to write.
        result: Stored result of the recipe.
    """
    figure = Figure(figsize=(12, 4.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in _shown(result):
        _curves(left, result, name, "eddies", "error", 1)
        if "corrected" not in name and name != "nothing moves":
            _curves(right, result, name, "eddies", "mass off", 100)
    noise = result["kinds"]["eddies"]["noise"][1:]
    left.plot(_hours(noise), noise, ":", color="black", label="(counting particles)")
    left.set(ylabel="error / root mean square of the truth", ylim=(0, None))
    right.set(ylabel="error of the mass, %")
    for axis in (left, right):
        axis.set(xlabel="hours", xticks=_ticks(result))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(path, figure)


def draw_intensity(path: Path, result: Result) -> None:
    """Draw the mean square of the true density over time, and that of every prediction relative to it.

    Args:
        path: PNG to write.
        result: Stored result of the recipe.
    """
    figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    true, *others = figure.subplots(1, 3)
    styles = {"eddies": "-", "reversed": "--", "sink": "-", "source": "-"}
    colors = {"eddies": "#00796b", "reversed": "#4db6ac", "sink": "#c2571a", "source": "#1e6fb8"}
    for kind, truth in result["kinds"].items():
        hours = [INTERVAL * i for i in range(len(truth["square"]))]
        true.plot(hours, truth["square"], styles[kind], color=colors[kind], label=kind)
    true.set(title="true mean square / that at first", yscale="log")
    true.minorticks_off()
    true.set_yticks(ticks := [0.4, 0.6, 1, 1.5, 2, 3], [f"{tick:g}" for tick in ticks])
    true.legend(frameon=False)
    shown = [n for n in ("double", "double, mass kept", *SEEN_OTHERS) if n in result["ways"]]
    for axis, kind in zip(others, ("sink", "eddies"), strict=True):
        for name in ["semi-Lagrangian, corrected", *shown]:
            _curves(axis, result, name, kind, "square", 1)
        axis.axhline(1, color="0.8", zorder=0)
        axis.set(title=f"{kind}: predicted / true mean square", ylim=(0, 2))
    for axis in (true, *others):
        axis.set(xlabel="hours", xticks=_ticks(result))
    figure.legend(
        *others[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    save_figure(path, figure)


def _curves(axis: Any, result: Result, name: str, kind: str, key: str, scale: float) -> None:
    """Draw the mean over training runs as a line, and their range as a band."""
    runs = [[scale * y for y in run[kind][key]] for run in result["ways"][name]["runs"]]
    mean = [statistics.mean(values) for values in zip(*runs, strict=True)]
    style = "--" if name in ("nothing moves", "semi-Lagrangian, corrected") else "-"
    axis.plot(_hours(mean), mean, style, color=COLORS[name], label=name)
    if len(runs) > 1:
        low, high = ([f(values) for values in zip(*runs, strict=True)] for f in (min, max))
        axis.fill_between(_hours(mean), low, high, color=COLORS[name], alpha=0.2, linewidth=0)


def _ticks(result: Result) -> range:
    return range(0, int(INTERVAL * result["options"]["steps"]) + 1, 12)


def _hours(values: Sequence[float]) -> list[float]:
    return [INTERVAL * (i + 1) for i in range(len(values))]
