"""Figure of the options of the dataset of drifting densities."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets import DriftDensity
from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.datasets.ocean import INTERVAL, grid_edges
from neurenix_ms.recipes.reporting import save_figure

SEAS: dict[str, dict[str, Any]] = {
    'seeding="anywhere"': {},
    'seeding="converging"': {"seeding": "converging"},
    'seeding="hyperbolic"': {"seeding": "hyperbolic"},
    'seeding="eddies"': {"seeding": "eddies"},
    "sink=0.4": {"sink": 0.4},
    "land=6, cell_sizes=2.0": {"land": 6, "cell_sizes": 2.0},
}
NUM_ARROWS = 20  # along each axis
LARGEST = 0.0153  # 1 / km2, of the colors: 1.2 times the patch


def draw_seas(
    path: Path, root: Path, *, size: int = 100, steps: int = 12, num_particles: int = 6000
) -> None:
    """Draw one sample of each option: density, currents and land at the start, halfway and at the end.

    Args:
        path: PNG to write.
        root: Cache of the samples.
        size: Cells along each axis.
        steps: Steps of six hours.
        num_particles: Particles of a sample.
    """
    times = sorted({0, steps // 2, steps})
    figure = Figure(
        figsize=(2.35 * len(SEAS), 2.4 * len(times) + 0.4), dpi=100, layout="constrained"
    )
    axes = figure.subplots(len(times), len(SEAS), squeeze=False)
    for column, (name, options) in zip(axes.T, SEAS.items(), strict=True):
        made = DriftDensity(
            root, 1, size, steps, num_particles=num_particles, seed=28, progress=False, **options
        )
        edges = grid_edges(size, options.get("cell_sizes", 1.0)).numpy()
        for axis, time in zip(column, times, strict=True):
            _show(axis, made[0], time, edges)
        column[0].set_title(name, fontsize=11)
    for row, time in zip(axes, times, strict=True):
        row[0].set_ylabel(f"{time * INTERVAL:.0f} h", fontsize=11)
    save_figure(path, figure)


def _show(axis: Any, sample: dict[str, Tensor], time: int, edges: "np.ndarray[Any, Any]") -> None:
    density = sample["density"][time]
    positive = np.ma.masked_less_equal(density.T.numpy(), 0)
    if "land" in sample:
        land = np.ma.masked_less(sample["land"].T.numpy(), 0.5)
        axis.pcolormesh(edges, edges, land, cmap=ListedColormap(["#b08d57"]))
    axis.pcolormesh(edges, edges, positive, cmap="viridis_r", vmin=0, vmax=LARGEST)
    every = torch.linspace(0, len(density) - 1, NUM_ARROWS).round().long()
    middle = ((edges[1:] + edges[:-1]) / 2)[every.numpy()]
    u, v = (one[every][:, every].T.numpy() for one in sample["velocity"][time])
    axis.quiver(middle, middle, u, v, color="0.6", scale=30, width=0.004, zorder=3, alpha=0.7)
    axis.set(xticks=[], yticks=[], xlim=(0, LENGTH), ylim=(0, LENGTH), aspect="equal")
