"""Table, curves, images and animation of advection and its correction."""

import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.recipes.reporting import markdown, save_animation, save_figure

Result = dict[str, Any]
COLORS = {
    "advection of point values": "#757575",
    "advection in flux form": "#1e6fb8",
    "advection of cell averages": "#212121",
    "U-Net": "#c2571a",
    "hybrid": "#00796b",
}
DRAWN = ["advection of point values", "advection of cell averages", "U-Net", "hybrid"]
SHOWN = {"eddies": 1.2, "land": 1.2, "sink": 6.0}  # kinds drawn, and the largest density of colors


def table_of(result: Result) -> str:
    """Return a Markdown table of the errors of all methods on all kinds of currents."""
    last = result["options"]["steps"]
    early = max(1, round(last / 3))
    kinds = list(result["kinds"])
    head = ["method"]
    for step in (early, last):
        head += [f"{kind}, {_hour(step)}" for kind in kinds]
    head += [f"eddies: mean square, {_hour(last)}", "error of the mass", "CPU time of training"]
    rows = [head, [":---"] + ["---:"] * (len(head) - 1)]
    for name in COLORS:
        way = result["ways"][name]
        errors = [_mean(way, kind, "error", step) for step in (early, last) for kind in kinds]
        wrong = max(abs(m) for run in way["runs"] for kind in kinds for m in run[kind]["mass off"])
        cpu = [run["cpu"] for run in way["runs"] if "cpu" in run]
        cost = f"{statistics.mean(cpu):.0f} s" if cpu else ""
        intensity = _mean(way, "eddies", "square", last)
        rows.append([name, *errors, intensity, f"{wrong:.0e}", cost])
    noise = [
        f"{result['kinds'][kind]['noise'][step]:.2f}" for step in (early, last) for kind in kinds
    ]
    rows.append(["(counting particles)", *noise, "", "", ""])
    return markdown(rows)


def _hour(step: int) -> str:
    return f"{step * INTERVAL:.0f} h"


def _mean(way: Result, kind: str, key: str, step: int) -> str:
    """Format the mean over seeds, and the largest difference from it."""
    values = [run[kind][key][step - 1] for run in way["runs"]]
    mean = statistics.mean(values)
    scatter = max(abs(value - mean) for value in values)
    return f"{mean:.3f}" + (f" ± {scatter:.3f}" if len(values) > 1 else "")


def draw_errors(path: Path, result: Result) -> None:
    """Draw the error of every method over time, for every kind of currents.

    Args:
        path: PNG to write.
        result: Stored result of the recipe.
    """
    figure = Figure(figsize=(13, 3.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(result["kinds"]), sharey=True)
    for axis, (kind, truth) in zip(axes, result["kinds"].items(), strict=True):
        hours = [INTERVAL * (i + 1) for i in range(result["options"]["steps"])]
        for name, color in COLORS.items():
            runs = [run[kind]["error"] for run in result["ways"][name]["runs"]]
            steps = list(zip(*runs, strict=True))
            axis.plot(hours, [statistics.mean(v) for v in steps], color=color, label=name)
            axis.fill_between(
                hours,
                [min(v) for v in steps],
                [max(v) for v in steps],
                color=color,
                alpha=0.2,
                lw=0,
            )
        axis.plot(hours, truth["noise"][1:], ":", color="black", label="(counting particles)")
        axis.set(title=kind, xlabel="hours", xticks=range(0, int(hours[-1]) + 1, 24), ylim=(0, 1.1))
    axes[0].set_ylabel("error / norm of the truth")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    save_figure(path, figure)


def draw_densities(
    path: Path, truth: dict[str, Tensor], predicted: dict[str, dict[str, Tensor]]
) -> None:
    """Draw the first unseen sample at the last step: truth and predictions.

    Args:
        path: PNG to write.
        truth: Densities of every kind `(B, T + 1, N, N)`.
        predicted: Densities of its first sample `(T, N, N)`, by kind and method.
    """
    columns = ["start", "truth", *DRAWN]
    figure = Figure(figsize=(2.2 * len(columns), 2.3 * len(SHOWN)), dpi=100, layout="constrained")
    axes = figure.subplots(len(SHOWN), len(columns), squeeze=False)
    for row, kind in zip(axes, SHOWN, strict=True):
        start, end = truth[kind][0, 0], truth[kind][0, -1]
        images = [start, end, *(predicted[kind][name][-1] for name in DRAWN)]
        _show(row, images, kind, _to_middle(start))
    _name_columns(axes, columns)
    save_figure(path, figure)


def animate(path: Path, truth: dict[str, Tensor], predicted: dict[str, dict[str, Tensor]]) -> None:
    """Animate the first unseen sample: truth, advection and the hybrid.

    Args:
        path: GIF to write.
        truth: As for `draw_densities`.
        predicted: As for `draw_densities`.
    """
    steps = len(truth["eddies"][0])
    save_animation(path, (_frame(truth, predicted, step) for step in range(steps)))


def _frame(truth: dict[str, Tensor], predicted: dict[str, dict[str, Tensor]], step: int) -> Figure:
    names = [name for name in DRAWN if name != "U-Net"]
    figure = Figure(figsize=(2.2 * (1 + len(names)), 6.9), dpi=90, layout="constrained")
    axes = figure.subplots(len(SHOWN), 1 + len(names), squeeze=False)
    for row, kind in zip(axes, SHOWN, strict=True):
        first = truth[kind][0]
        ways = (torch.cat([first[:1], predicted[kind][name]]) for name in names)
        _show(row, [images[step] for images in (first, *ways)], kind, _to_middle(first[0]))
    _name_columns(axes, ["truth", *names])
    figure.suptitle(f"{step * INTERVAL:.0f} hours", fontsize=11)
    return figure


def _to_middle(density: Tensor) -> list[int]:
    """Return the cells by which to roll a periodic density to center its maximum."""
    peak = int(density.flatten().argmax())
    return [density.shape[0] // 2 - i for i in divmod(peak, density.shape[1])]


def _show(row: Any, images: list[Tensor], kind: str, shift: list[int]) -> None:
    for axis, image in zip(row, images, strict=True):
        norm = PowerNorm(0.5, 0, SHOWN[kind], clip=True)
        centered = image.roll(shift, (0, 1)).T
        axis.imshow(centered, norm=norm, cmap="magma", origin="lower", interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(kind)


def _name_columns(axes: Any, names: list[str]) -> None:
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name.replace("advection of ", "advection of\n"), fontsize=10)
