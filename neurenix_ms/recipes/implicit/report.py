"""Tables and figures of the experiments with implicit fields."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neurenix_ms.recipes.implicit.densified import DENSIFIED
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

Result = dict[str, Any]
STYLES = {
    "l2": ("o-", "#c2571a"),
    "contribution": ("s-", "#6a4c93"),
    "l2 by layer": ("D-", "#00796b"),
}


def wave_table(result: Result) -> str:
    """Return a Markdown table of errors at each sparsity and costs of the compact models."""
    head = [
        "nodes removed",
        *(f"error, {name}" for name in result["rounds"]),
        "parameters",
        "file",
        "grid of 10 x 1,000",
    ]
    lines = [head, ["---:"] * len(head)]
    first = next(iter(result["rounds"].values()))
    for i, one in enumerate(first):
        errors = [f"{rounds[i]['error']:.2e}" for rounds in result["rounds"].values()]
        costs = result["costs"][i]
        lines.append(
            [
                f"{100 * one['sparsity']:.0f} %",
                *errors,
                f"{costs['parameters']:,}",
                f"{costs['bytes'] / 1024:.0f} KiB",
                f"{costs['speed']:.1f} times faster" if i else "1",
            ]
        )
    return markdown(lines)


def draw_wave(path: Path, result: Result) -> None:
    """Draw the wave and its compact model at three times, and the error over the sparsity."""
    figure = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = result["fields"]
    for i, time in enumerate(shown["t"]):
        left.plot(shown["x"], shown["true"][i], color="0.6", lw=3, label=_once("true", i))
        left.plot(shown["x"], shown["dense"][i], color="#00796b", lw=1, label=_once("dense", i))
        label = f"compact, {100 * shown['sparsity']:.0f} % of nodes removed"
        left.plot(
            shown["x"], shown["compact"][i], "--", color="#c2571a", lw=1, label=_once(label, i)
        )
        left.annotate(f"t = {time:.0f}", (0.2 + 0.006 * time, max(shown["true"][i]) * 1.08))
    left.set(xlabel="x", ylabel="u")
    left.margins(y=0.2)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    for name, rounds in result["rounds"].items():
        style, color = STYLES[name]
        share = [100 * one["sparsity"] for one in rounds]
        before = [one["before"] for one in rounds]
        right.semilogy(share, [one["error"] for one in rounds], style, color=color, label=name)
        right.semilogy(share[1:], before[1:], ":", color=color)
    right.plot([], [], ":", color="0.4", label="before retraining")
    dense = next(iter(result["rounds"].values()))[0]["error"]
    right.axhline(2 * dense, color="0.6", lw=1)
    right.annotate(
        "twice the dense error",
        (0, 2 * dense),
        xytext=(2, 3),
        textcoords="offset points",
        fontsize=8,
    )
    right.set(xlabel="nodes removed, %", ylabel="relative error")
    right.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def waves_table(result: Result) -> str:
    """Return a Markdown table of the errors of both networks on seen and unseen parameters."""
    lines = [
        ["", "parameters", "error, seen", "error, unseen", "rms error, unseen", "published"],
        [":---", "---:", "---:", "---:", "---:", "---:"],
    ]
    published = {"NIF": "0.646", "MLP": "1.091"}
    for name, one in result["models"].items():
        errors = [f"{one[key]:.3f}" for key in ("seen", "unseen", "unseen_rms")]
        lines.append([name, f"{one['parameters']:,}", *errors, published[name]])
    return markdown(lines)


def draw_waves(path: Path, result: Result) -> None:
    """Draw the waves of an unseen parameter over time and space: truth and both predictions."""
    shown = result["fields"]
    names = ["true", *result["models"]]
    figure = Figure(figsize=(9.6, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True)
    limit = max(abs(value) for row in shown["true"] for value in row)
    for axis, name in zip(axes, names, strict=True):
        image = axis.imshow(
            shown[name],
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            extent=shown["extent"],
        )
        axis.set(title=name, xlabel="x")
    axes[0].set_ylabel(f"t, at nu = {shown['nu']:.3f}")
    figure.colorbar(image, ax=axes, label="u")
    save_figure(path, figure)


def turbulence_table(result: Result) -> str:
    """Return a Markdown table of error and compression for the implicit models and linear methods."""
    lines = [
        ["model", "stored values", "compression", "error", "training"],
        [":---", "---:", "---:", "---:", "---:"],
    ]
    for one in result["models"]:
        lines.append(
            [
                one["name"],
                f"{one['numbers']:,}",
                f"{result['values'] / one['numbers']:.1f}",
                scatter(one["errors"]),
                f"{one['seconds']} s" if "seconds" in one else "",
            ]
        )
    return markdown(lines)


def draw_turbulence(path: Path, result: Result) -> None:
    """Draw the field (truth, implicit model, POD with as many numbers), and error by compression."""
    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, 4)
    shown = result["fields"]
    names = [name for name in shown if name not in ("t", "true", "label")]
    values = [value for row in shown["true"] for value in row]
    low, high = min(values), max(values)
    signs = low < 0 < high
    limits = (
        {"vmin": -max(-low, high), "vmax": max(-low, high)}
        if signs
        else {"vmin": low, "vmax": high}
    )
    for axis, name in zip(axes, ["true", *names], strict=False):
        image = axis.imshow(
            shown[name], cmap="RdBu_r" if signs else "viridis", origin="lower", **limits
        )
        axis.set(title=name, xticks=[], yticks=[])
    label = shown.get("label", "vorticity")
    figure.colorbar(image, ax=list(axes[:3]), label=f"{label} at t = {shown['t']:g}", shrink=0.7)
    for kind, style in (("POD", "o-"), ("cosine transform", "^-"), ("NIF", "s-")):
        some = [one for one in result["models"] if one["name"].startswith(kind)]
        ratio = [result["values"] / one["numbers"] for one in some]
        means = [statistics.mean(one["errors"]) for one in some]
        axes[3].loglog(ratio, means, style, label=kind)
    axes[3].set(xlabel="compression", ylabel="relative error")
    axes[3].minorticks_off()
    if label == "vorticity":
        axes[3].set_xticks([3, 5, 10, 20], ["3", "5", "10", "20"])
        axes[3].set_yticks([0.2, 0.4, 0.6, 0.8, 1], ["0.2", "0.4", "0.6", "0.8", "1"])
    axes[3].legend(frameon=False)
    save_figure(path, figure)


MODELS = {
    "dense": "dense",
    "small": "small, from scratch",
    "pruned": "pruned",
    "densified": "pruned more, then densified",
}


def densified_table(result: Result) -> str:
    """Return a Markdown table of parameters and errors, mean and deviation over the seeds."""
    lines = [
        ["field", "model", "nodes per layer", "parameters", "relative error"],
        [":---", ":---", ":---", "---:", "---:"],
    ]
    for name, runs in result.items():
        title = DENSIFIED[name].title
        for key, label in MODELS.items():
            models = [run["models"][key] for run in runs]
            errors = [model["error"] for model in models]
            widths = ", ".join(map(str, models[0]["widths"]))
            numbers = f"{models[0]['parameters']:,}"
            lines.append([title, label, widths, numbers, scatter(errors, ".1e")])
            title = ""
    return markdown(lines)


def draw_densified(path: Path, result: Result) -> None:
    """Draw the error of every model and seed."""
    figure = Figure(figsize=(8.2, 3.2), dpi=110, layout="constrained")
    for axis, (name, runs) in zip(
        figure.subplots(1, len(result), squeeze=False)[0], result.items(), strict=True
    ):
        for run in runs:
            errors = [run["models"][key]["error"] for key in MODELS]
            axis.semilogy(
                range(len(MODELS)), errors, "o-", ms=4, lw=0.8, label=f"seed {run['seed']}"
            )
        labels = [
            label.replace(", ", ",\n").replace("more then", "more\nthen")
            for label in MODELS.values()
        ]
        axis.set_xticks(range(len(MODELS)), labels, fontsize=8)
        axis.set(title=DENSIFIED[name].title, ylabel="relative error")
        axis.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def _once(label: str, i: int) -> str | None:
    return None if i else label
