"""Table and figure of the errors of time-steppers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from neurenix_ms.recipes.hierarchy.settings import SETTINGS
from neurenix_ms.recipes.reporting import markdown, save_figure

COLUMNS = ("finest alone", "best single", "coupled", "hybrid")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: a row of our errors per system and noise, and the published ones below.

    Args:
        results: Results of the experiment, one per system and noise.
    """
    head = ["system", "noise", *COLUMNS, "strides coupled", "training"]
    lines = [head, [":---", "---:", *["---:"] * len(COLUMNS), ":---", "---:"]]
    order = list(SETTINGS)
    for result in sorted(results, key=lambda r: (order.index(r["system"]), r["noise"])):
        single = {int(k): v for k, v in result["errors"].items() if k.isdigit()}
        finite = {size: error for size, error in single.items() if math.isfinite(error)}
        best = min(finite, key=lambda size: finite[size])
        ours = [
            shown(single[min(single)]),
            f"{shown(finite[best])} ({best})",
            f"**{shown(result['errors']['coupled'])}**",
            shown(result["errors"]["hybrid"]),
        ]
        strides = ", ".join(map(str, sorted(result["selected"])))
        minutes = f"{result['iterations']:,} steps, {result['seconds'] / 60:.0f} min"
        name = result["system"].replace("_", " ")
        lines.append([name, f"{100 * result['noise']:g} %", *ours, strides, minutes])
        lines.append(["", "", *_published(result), "published", ""])
    return markdown(lines)


def shown(error: float) -> str:
    """Format an error for the table.

    Examples:
        >>> shown(0.00123), shown(float("nan"))
        ('1.2e-03', 'diverges')
    """
    return f"{error:.1e}" if math.isfinite(error) else "diverges"


def _published(result: dict[str, Any]) -> list[str]:
    settings = SETTINGS[result["system"]]
    noisy = dict(zip((0.01, 0.02), settings.published_noisy, strict=True))
    if result["noise"] == 0:
        return [*(f"{error:.1e}" for error in settings.published), ""]
    error = noisy.get(result["noise"])
    return ["", "", "" if error is None else f"{error:.1e}", ""]


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draw the mean squared error over time for every stride, the coupled and the hybrid forecast.

    Args:
        path: PNG to write.
        result: Result of the experiment for one system.
    """
    curves = result["curves"]
    single = sorted(int(name) for name in curves if name.isdigit())
    colors = matplotlib.colormaps["viridis"]
    figure = Figure(figsize=(8.2, 4.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    steps = 40  # per point of a curve
    times = [(i + 0.5) * steps * result["dt"] for i in range(len(curves["coupled"]))]
    for i, size in enumerate(single):
        color = colors(i / max(1, len(single) - 1) * 0.95)
        axis.plot(times, curves[str(size)], color=color, lw=1.1, label=f"stride {size} alone")
    axis.plot(times, curves["hybrid"], color="tab:orange", lw=2, ls="--", label="hybrid, with RK4")
    axis.plot(times, curves["coupled"], color="tab:red", lw=2.6, label="coupled")
    axis.set_yscale("log")
    low = min(min(curves["coupled"]), min(curves["hybrid"]))
    high = max((x for s in single for x in curves[str(s)] if math.isfinite(x)), default=1.0)
    axis.set_ylim(low / 5, min(1e2, 5 * high))
    axis.set_xlabel("time")
    axis.set_ylabel("mean squared error")
    axis.set_title(result["system"].replace("_", " "))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    save_figure(path, figure)
