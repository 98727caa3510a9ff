"""Table and figure of the errors of time-steppers."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from neurenix_ms.recipes.hierarchy.settings import SETTINGS
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

COLUMNS = ("finest alone", "best single", "coupled", "hybrid")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: a row of our errors per system and noise, and the published ones below.

    Trajectories of the user's own have neither published errors nor a hybrid.

    Args:
        results: Results of the experiment, one per system, noise and seed.
    """
    columns = [
        name
        for name in COLUMNS
        if name != "hybrid" or any("hybrid" in run["errors"] for run in results)
    ]
    head = ["system", "noise", *columns, "strides coupled", "training"]
    lines = [head, [":---", "---:", *["---:"] * len(columns), ":---", "---:"]]
    runs: dict[tuple[int, str, float, bool, tuple[int, ...]], list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: result.get("seed", 0)):
        own = f"{result['system']} {result['data']} {result['dt']}" if "data" in result else ""
        place = len(SETTINGS) if own else list(SETTINGS).index(result["system"])
        smoothed = bool(result.get("smoothed"))
        hidden = tuple(result.get("hidden", ()))
        runs.setdefault((place, own, result["noise"], smoothed, hidden), []).append(result)
    for (_, own, noise, smoothed, hidden), seeds in sorted(runs.items(), key=lambda item: item[0]):
        errors = {way: [run["errors"][way] for run in seeds] for way in seeds[0]["errors"]}
        single = {int(way): values for way, values in errors.items() if way.isdigit()}
        finite = [size for size, values in single.items() if all(map(math.isfinite, values))]
        best = min(finite or single, key=lambda size: sum(single[size]))
        cells = {
            "finest alone": shown(single[min(single)]),
            "best single": f"{shown(single[best])} ({best})",
            "coupled": f"**{shown(errors['coupled'])}**",
            "hybrid": shown(errors["hybrid"]) if "hybrid" in errors else "",
        }
        strides = "; ".join(
            dict.fromkeys(", ".join(map(str, sorted(run["selected"]))) for run in seeds)
        )
        minutes = statistics.mean(run["seconds"] for run in seeds) / 60
        cost = f"{seeds[0]['iterations']:,} steps, {minutes:.0f} min"
        cost += f", widths {', '.join(map(str, hidden))}" if hidden else ""
        name = seeds[0]["system"] if own else seeds[0]["system"].replace("_", " ")
        noisy = f"{100 * noise:g} %{', smoothed' if smoothed else ''}"
        lines.append([name, noisy, *(cells[column] for column in columns), strides, cost])
        if not own:
            lines.append(["", "", *_published(seeds[0]), "published", ""])
    return markdown(lines)


def shown(errors: Sequence[float]) -> str:
    """Format the errors of runs for the table; of several, their mean and standard deviation.

    Examples:
        >>> shown([0.00123]), shown([0.001, 0.003]), shown([0.1, float("nan")])
        ('1.2e-03', '2.0e-03 ± 1.4e-03', 'diverges')
    """
    return scatter(errors, ".1e") if all(map(math.isfinite, errors)) else "diverges"


def _published(result: dict[str, Any]) -> list[str]:
    settings = SETTINGS[result["system"]]
    noisy = dict(zip((0.01, 0.02), settings.published_noisy, strict=True))
    if result["noise"] == 0:
        return [*(f"{error:.1e}" for error in settings.published or ()), ""]
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
    steps = result.get("steps_of_point", 40)
    times = [(i + 0.5) * steps * result["dt"] for i in range(len(curves["coupled"]))]
    for i, size in enumerate(single):
        color = colors(i / max(1, len(single) - 1) * 0.95)
        axis.plot(times, curves[str(size)], color=color, lw=1.1, label=f"stride {size} alone")
    if "hybrid" in curves:
        axis.plot(
            times, curves["hybrid"], color="tab:orange", lw=2, ls="--", label="hybrid, with RK4"
        )
    axis.plot(times, curves["coupled"], color="tab:red", lw=2.6, label="coupled")
    axis.set_yscale("log")
    low = min(x for way in ("coupled", "hybrid") for x in curves.get(way, []))
    high = max((x for s in single for x in curves[str(s)] if math.isfinite(x)), default=1.0)
    axis.set_ylim(low / 5, min(1e2, 5 * high))
    axis.set_xlabel("time")
    axis.set_ylabel("mean squared error")
    title = result["system"]
    axis.set_title(title if "data" in result else title.replace("_", " "))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    save_figure(path, figure)
