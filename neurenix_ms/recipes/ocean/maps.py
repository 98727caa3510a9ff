"""Figure and animation of true and predicted density maps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.recipes.reporting import save_animation, save_figure

Predicted = dict[str, dict[str, Tensor]]
LARGEST = {"eddies": 1.2, "sink": 6.0}  # of the colors, in densities at the release
DRAWN = ["semi-Lagrangian, corrected", "double", "single", "double, mass kept", "double, seen all"]
ANIMATED = ["semi-Lagrangian, corrected", "double", "double, seen all"]


def draw_maps(path: Path, truth: dict[str, Tensor], predicted: Predicted) -> None:
    """Draw the first unseen sample in eddies and with a sink, at four times: truth and predictions.

    Args:
        path: PNG to write.
        truth: Densities of every kind `(B, T + 1, N, N)`.
        predicted: Densities of its first sample `(T, N, N)`, by kind and method.
    """
    rows = _rows(truth, predicted, DRAWN)
    names = list(rows["eddies"])
    steps = len(truth["eddies"][0]) - 1
    times = sorted({round(steps * i / 3) for i in range(4)})
    figure = Figure(figsize=(13, 1.62 * len(names) + 0.5), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(1, len(rows))
    for half, (kind, maps) in zip(halves, rows.items(), strict=True):
        half.suptitle(kind, fontsize=13)
        axes = half.subplots(len(names), len(times), squeeze=False)
        for row, name in zip(axes, names, strict=True):
            for axis, time in zip(row, times, strict=True):
                _show(axis, maps[name][time], kind)
            row[0].set_ylabel(_broken(name), fontsize=10)
        for axis, time in zip(axes[0], times, strict=True):
            axis.set_title(f"{time * INTERVAL:.0f} h", fontsize=10)
    save_figure(path, figure)


def animate(path: Path, truth: dict[str, Tensor], predicted: Predicted) -> None:
    """Animate the first unseen sample in eddies (above) and with a sink (below).

    Args:
        path: GIF to write.
        truth: As for `draw_maps`.
        predicted: As for `draw_maps`.
    """
    rows = _rows(truth, predicted, ANIMATED)
    save_animation(path, (_frame(rows, time) for time in range(len(truth["eddies"][0]))))


def _frame(rows: Predicted, time: int) -> Figure:
    names = list(rows["eddies"])
    figure = Figure(figsize=(2.1 * len(names), 4.7), dpi=90, layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    for row, (kind, maps) in zip(axes, rows.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            _show(axis, maps[name][time], kind)
        row[0].set_ylabel(kind, fontsize=10)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(_broken(name), fontsize=10)
    figure.suptitle(f"{time * INTERVAL:.0f} hours", fontsize=11)
    return figure


def _rows(truth: dict[str, Tensor], predicted: Predicted, names: Sequence[str]) -> Predicted:
    """Return the density maps of all times, including the start, rolled so that truth is centered."""
    rows: Predicted = {}
    for kind in LARGEST:
        first = truth[kind][0]
        ways = {"truth": first}
        for name in names:
            if name in predicted[kind]:
                ways[name] = torch.cat([first[:1], predicted[kind][name]])
        shift = [_to_middle(first.sum(0).sum(1 - axis)) for axis in (0, 1)]
        rows[kind] = {name: maps.roll(shift, (-2, -1)) for name, maps in ways.items()}
    return rows


def _to_middle(profile: Tensor) -> int:
    """Return the number of cells by which to roll a periodic profile to center its mean direction."""
    n = len(profile)
    angle = 2 * math.pi * torch.arange(n) / n
    mean = math.atan2((profile * angle.sin()).sum().item(), (profile * angle.cos()).sum().item())
    return round(n / 2 - n * mean / (2 * math.pi))


def _show(axis: Any, density: Tensor, kind: str) -> None:
    norm = PowerNorm(0.6, 0, LARGEST[kind], clip=True)
    axis.imshow(
        density.T.numpy(),
        cmap="magma",
        norm=norm,
        origin="lower",
        extent=(0, LENGTH, 0, LENGTH),
        interpolation="nearest",
    )
    axis.set(xticks=[], yticks=[])


def _broken(name: str) -> str:
    return name.replace(", ", ",\n")
