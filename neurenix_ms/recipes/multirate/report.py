"""Table and figure of errors and horizons."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurenix_ms.recipes.multirate.scores import THRESHOLD, Result, horizon
from neurenix_ms.recipes.multirate.settings import EARLY, SYSTEMS, VARIANTS, Settings
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

COLORS = {"single": "0.5", "multirate": "tab:red", "stride": "tab:green"}


def summary(settings: Settings, run: Result) -> Result:
    """Return the figures of a run that are stored, without those of every step."""
    kept = ("seed", "iterations", "parameters", "seconds")
    steps = (1, EARLY, settings.published)
    errors = {f"error at {step}": error_at(run, step) for step in steps}
    return {name: run[name] for name in kept} | errors | {"horizon": horizon(run["correlations"])}


def table(
    results: dict[str, dict[str, list[Result]]], systems: Mapping[str, Settings] = SYSTEMS
) -> str:
    """Return a Markdown table: a row per system and model, mean and deviation over the seeds."""
    errors = [f"error at {EARLY}", "error at end"]
    head = ["system", "model", "parameters", "CPU s", *errors, "horizon", "ratio of horizons"]
    lines = [head, [":---", ":---", *["---:"] * 6]]
    for system, runs in results.items():
        published = systems[system].published
        title = f"{systems[system].title}, end at {published}"
        single = {run["seed"]: horizon(run["correlations"]) for run in runs.get("single", [])}
        for variant, some in runs.items():
            horizons = {run["seed"]: float(horizon(run["correlations"])) for run in some}
            ratios = [steps / single[seed] for seed, steps in horizons.items() if seed in single]
            lines.append(
                [
                    title,
                    VARIANTS[variant].title,
                    f"{some[0]['parameters']:,}",
                    scatter([run["seconds"] for run in some], ".0f"),
                    scatter([error_at(run, EARLY) for run in some]),
                    scatter([error_at(run, published) for run in some], ".2f"),
                    scatter(list(horizons.values()), ".0f"),
                    scatter(ratios, ".2f") if ratios else "",
                ]
            )
            title = ""
    return markdown(lines)


def error_at(run: Result, step: int) -> float:
    """Return the error after so many steps, or at the end of a shorter forecast."""
    errors: list[float] = run["errors"]
    return errors[min(step, len(errors)) - 1]


def draw(
    path: Path,
    results: dict[str, dict[str, list[Result]]],
    systems: Mapping[str, Settings] = SYSTEMS,
) -> None:
    """Draw errors and correlations over time, a line per seed."""
    figure = Figure(figsize=(9.6, 3.2 * len(results)), dpi=110, layout="constrained")
    grid = figure.subplots(len(results), 2, squeeze=False)
    for (left, right), (system, runs) in zip(grid, results.items(), strict=True):
        _draw(left, runs, "errors")
        left.set(yscale="log", ylabel="root mean squared error", title=systems[system].title)
        left.legend(frameon=False, fontsize=8)
        _draw(right, runs, "correlations")
        right.axhline(THRESHOLD, color="0.7", lw=1, ls="--")
        right.set(ylabel="correlation with the true state")
    save_figure(path, figure)


def _draw(axis: Axes, runs: dict[str, list[Result]], key: str) -> None:
    for variant, some in runs.items():
        for i, run in enumerate(some):
            label = None if i else VARIANTS[variant].title.strip("*")
            steps = range(1, len(run[key]) + 1)
            axis.plot(steps, run[key], color=COLORS[variant], lw=1, label=label)
    axis.set(xlabel="step")
