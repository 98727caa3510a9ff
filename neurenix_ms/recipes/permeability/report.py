"""Table and figure of permeabilities of unseen boxes."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.recipes.permeability.data import Sample
from neurenix_ms.recipes.permeability.laws import CONDUCTION, KOZENY_CARMAN
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter


def table(result: dict[str, Any]) -> str:
    """Return the errors of the permeability of every method in percent, a row per method.

    Args:
        result: Everything that was measured.
    """
    lines = [["method", "mean", "median", "largest", "bias", "R\u00b2 of the velocity"]]
    lines.append([":---", *["---:"] * 5])
    truth = torch.tensor(result["true"])
    runs = result["runs"]
    own = [torch.tensor(run["predicted"]) for run in runs]
    scaled = [run["scale"] * found for run, found in zip(runs, own, strict=True)]
    explained = scatter([run["r2"] for run in runs])
    lines.append(["MS-Net", *_errors(own, truth), explained])
    lines.append(["MS-Net, with a fitted constant", *_errors(scaled, truth), ""])
    for name, found in result["laws"].items():
        lines.append([name, *_errors([torch.tensor(found)], truth), ""])
    return markdown(lines)


def _errors(predicted: Sequence[Tensor], truth: Tensor) -> list[str]:
    """Return mean, median and largest relative error in percent, and the mean with its sign."""
    off = [100 * (one / truth - 1).flatten() for one in predicted]
    sizes = [one.abs() for one in off]
    numbers = [
        [float(one.mean()) for one in sizes],
        [statistics.median(one.tolist()) for one in sizes],
        [float(one.max()) for one in sizes],
        [float(one.mean()) for one in off],
    ]
    forms = (".1f", ".1f", ".0f", "+.1f")
    return [
        f"{scatter(row, form)} %".replace("\u00b1 +", "\u00b1 ")
        for row, form in zip(numbers, forms, strict=True)
    ]


def draw(path: Path, result: dict[str, Any], box: Sample, predicted: Tensor) -> None:
    """Draw predicted against true permeabilities, and a slice through the flow of a box.

    Args:
        path: PNG to write.
        result: Everything that was measured.
        box: An unseen box.
        predicted: Its predicted velocity along axis 0.
    """
    figure = Figure(figsize=(13.0, 4.5), dpi=100, layout="constrained")
    left, *others = figure.subplots(1, 4, width_ratios=[1.25, 1, 1, 1])
    truth = torch.tensor(result["true"]).flatten()
    points = {
        "MS-Net, first seed": (result["runs"][0]["predicted"], "o", "tab:red"),
        KOZENY_CARMAN: (result["laws"][KOZENY_CARMAN], "x", "0.55"),
        CONDUCTION: (result["laws"][CONDUCTION], "+", "tab:blue"),
    }
    ends = [0.7 * float(truth.min()), 1.4 * float(truth.max())]
    left.plot(ends, ends, color="0.3", lw=0.8)
    for label, (found, marker, color) in points.items():
        left.plot(truth, torch.tensor(found).flatten(), marker, color=color, ms=4, label=label)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("solved permeability, voxel\u00b2")
    left.set_ylabel("predicted")
    left.legend(fontsize=8, frameon=False)
    middle = box["pores"].shape[2] // 2
    pores, velocity = box["pores"][:, :, middle] > 0, box["velocity"][0][:, :, middle]
    found = predicted[:, :, middle]
    top = float(velocity.max())
    viridis = matplotlib.colormaps["viridis"].with_extremes(bad="0.72")
    diverging = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.72")
    fields = {
        "solved velocity": (velocity, viridis, 0.0, top),
        "predicted": (found, viridis, 0.0, top),
        "predicted - solved": (found - velocity, diverging, -top / 2, top / 2),
    }
    for axis, (title, (field, colors, low, high)) in zip(others, fields.items(), strict=True):
        shown = torch.where(pores, field, torch.nan).T.numpy()
        image = axis.imshow(shown, origin="lower", cmap=colors, vmin=low, vmax=high)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("flow \u2192")
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(image, ax=axis, location="bottom", aspect=25, shrink=0.9, pad=0.02)
    save_figure(path, figure)
