"""Table and figure of errors and network calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurenix_ms.recipes.adaptive.settings import SYSTEMS, Settings
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

Result = dict[str, Any]
NAMES = {
    "best single": "most accurate single stride",
    "best coupled": "most accurate coupled strides",
    "cheapest fixed": "cheapest single or coupled strides of that error",
    "change": "adaptive by change (AHiTS)",
    "adaptive": "**adaptive by predicted error**",
}
COLORS = {"single": "0.6", "coupled": "tab:blue", "change": "tab:orange", "adaptive": "tab:red"}


def table(results: dict[str, list[Result]], systems: Mapping[str, Settings] = SYSTEMS) -> str:
    """Return a Markdown table: a row per system and forecast, mean and deviation over the seeds."""
    head = ["system", "forecast", "error", "calls", "cost, relative to the cheapest fixed strides"]
    lines = [head, [":---", ":---", "---:", "---:", "---:"]]
    for system, runs in results.items():
        title = systems[system].title
        for key, name in NAMES.items():
            rows = [run["rows"][key]["test"] for run in runs]
            fixed = [run["rows"]["cheapest fixed"]["test"]["cost"] for run in runs]
            ratios = [row["cost"] / cost for row, cost in zip(rows, fixed, strict=True)]
            cells = [
                scatter([row["error"] for row in rows], ".1e"),
                scatter([row["calls"] for row in rows], ".0f"),
                scatter(ratios, ".2f"),
            ]
            lines.append([title, name, *cells])
            title = ""
    return markdown(lines)


def draw(
    path: Path, results: dict[str, list[Result]], systems: Mapping[str, Settings] = SYSTEMS
) -> None:
    """Draw error over cost of all forecasts, and one adaptive forecast, for every system."""
    figure = Figure(figsize=(9.6, 3.4 * len(results)), dpi=110, layout="constrained")
    grid = figure.subplots(len(results), 2, squeeze=False)
    for (left, right), (system, runs) in zip(grid, results.items(), strict=True):
        _draw_costs(left, runs)
        left.set_title(systems[system].title)
        _draw_example(right, runs[0])
    save_figure(path, figure)


def _draw_costs(axis: Axes, runs: list[Result]) -> None:
    for kind, color in COLORS.items():
        for i, run in enumerate(runs):
            rows = [row["test"] for row in run["ways"] if row["kind"] == kind and "test" in row]
            front = sorted((row["cost"], row["error"]) for row in rows)
            label = {"change": "adaptive by change", "adaptive": "adaptive by predicted error"}
            axis.loglog(
                *zip(*front, strict=True),
                "o-",
                color=color,
                ms=3,
                lw=1,
                label=None if i else label.get(kind, kind),
            )
    axis.set(xlabel="cost per trajectory, in calls of a stepper", ylabel="mean squared error")
    axis.legend(frameon=False, fontsize=8)


def _draw_example(axis: Axes, run: Result) -> None:
    one = run["example"]
    shown = slice(0, 400)
    true, forecast = one["true"][shown], one["forecast"][shown]
    times = [run["dt"] * (i + 1) for i in range(len(true))]
    some = [i - 1 for i in one["computed"] if i <= len(true)]
    axis.plot(times, [state[0] for state in true], color="0.6", lw=3, label="true")
    axis.plot(times, [state[0] for state in forecast], color="tab:red", lw=1, label="adaptive")
    axis.plot(
        [times[i] for i in some], [forecast[i][0] for i in some], "k.", ms=4, label="computed"
    )
    axis.set(xlabel="time", ylabel="first component")
    axis.legend(frameon=False, fontsize=8)
