"""Scores and figure of an MSNet on unseen geometries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.msnet import coarsen
from neurenix_ms.recipes.demo.models import linear_field
from neurenix_ms.recipes.demo.report import ArchieLaw, conductance_scores, field_scores
from neurenix_ms.recipes.msnet.models import potential_of
from neurenix_ms.recipes.reporting import save_figure

Columns = dict[str, dict[str, str]]


def scores(
    predicted: Tensor, held_out: dict[str, Tensor], law: ArchieLaw, bruggeman: ArchieLaw
) -> Columns:
    """Return the rows of the table for unseen geometries of one size: MSNet and three baselines.

    Args:
        predicted: Predicted potential.
        held_out: Samples, stacked.
        law: Archie's law, fitted to the training samples.
        bruggeman: Bruggeman's law, without fitted parameters.
    """
    pores, truth = held_out["pores"], held_out["potential"]
    size = pores.shape[2]
    porosity = pores.flatten(1).mean(dim=1)
    linear = linear_field(tuple(truth.shape[2:])).expand_as(truth)
    columns = {
        "MS-Net": field_scores(predicted, truth, pores),
        f"Archie {law.scale:.2f} φ^{law.exponent:.2f}": conductance_scores(
            law(porosity), held_out["D_rel"]
        ),
        f"Bruggeman φ^{bruggeman.exponent:.1f}": conductance_scores(
            bruggeman(porosity), held_out["D_rel"]
        ),
        "linear field": field_scores(linear, truth, pores),
    }
    return {
        name: {f"{size}³: {row}": value for row, value in rows.items()}
        for name, rows in columns.items()
    }


def draw(
    path: Path, samples: Sequence[dict[str, Tensor]], deviations: Sequence[Sequence[Tensor]]
) -> None:
    """Draw a slice through each sample: geometry, coarse-to-fine predictions, truth, error.

    Args:
        path: PNG to write.
        samples: Items of `PorousConduction`, flow along the first axis (to the right).
        deviations: Output of the network for each sample.
    """
    num_scales = len(deviations[0])
    figure = Figure(
        figsize=(2.3 * (num_scales + 3), 2.55 * len(samples) + 1.1), dpi=100, layout="constrained"
    )
    axes = figure.subplots(len(samples), num_scales + 3, squeeze=False)
    viridis = matplotlib.colormaps["viridis"].with_extremes(bad="0.72")
    diverging = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.72")

    def show(axis: Any, x: Tensor, pores: Tensor, **options: Any) -> Any:
        middle = x.shape[-1] // 2
        field, inside = x[0, 0, :, :, middle], pores[0, 0, :, :, middle] > 0
        masked = torch.where(inside, field, torch.nan).T.numpy()
        return axis.imshow(masked, origin="lower", interpolation="nearest", **options)

    for i, (row, sample, outputs) in enumerate(zip(axes, samples, deviations, strict=True)):
        pores, truth = sample["pores"][None], sample["potential"][None]
        shares = coarsen(pores, num_scales)
        finest = potential_of(outputs[-1], pores)
        solid = 1 - pores[0, 0, :, :, pores.shape[-1] // 2].T.numpy()
        row[0].imshow(solid, cmap="Greys", vmin=0, vmax=2.6, origin="lower")
        row[0].set_ylabel(f"held-out geometry {i + 1}, {len(pores[0, 0])}³", fontsize=11)
        row[0].set_xlabel(f"porosity {float(pores.mean()):.2f}, flow \u2192", fontsize=11)
        for axis, deviation, share in zip(row[1:], outputs, shares, strict=False):
            # a coarse value averages over solid, too, and its unit is that of the finest cells
            inside = deviation / share.clamp(min=1e-3) * len(share[0, 0]) / len(pores[0, 0])
            coarse = potential_of(inside, (share > 0).float())
            image = show(axis, coarse, share, cmap=viridis, vmin=-0.5, vmax=0.5)
        show(row[-2], truth, pores, cmap=viridis, vmin=-0.5, vmax=0.5)
        wrong = show(row[-1], finest - truth, pores, cmap=diverging, vmin=-0.1, vmax=0.1)
        true_d, d = (float(effective_conductivity(u, pores)) for u in (truth, finest))
        row[-3].set_xlabel(f"D_rel {d:.3f} ({100 * (d / true_d - 1):+.1f} %)", fontsize=11)
        row[-2].set_xlabel(f"D_rel {true_d:.3f}", fontsize=11)
        rms = float((finest - truth)[pores > 0].square().mean().sqrt())
        row[-1].set_xlabel(f"rms {rms:.3f}", fontsize=11)
    names = [f"predicted, scale {k + 1}" for k in range(num_scales)]
    for axis, name in zip(
        axes[0], ["geometry", *names, "true potential", "predicted - true"], strict=True
    ):
        axis.set_title(name, fontsize=12)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    bars: dict[str, Any] = {"location": "bottom", "aspect": 40, "pad": 0.02}
    figure.colorbar(image, ax=list(axes[:, 1:-1].flat), label="potential", shrink=0.6, **bars)
    figure.colorbar(
        wrong, ax=list(axes[:, -1]), label="error", extend="both", **{**bars, "aspect": 20}
    )
    save_figure(path, figure)
