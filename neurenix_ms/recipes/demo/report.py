"""Scores, table and figure of the demo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.recipes.demo.models import linear_field
from neurenix_ms.recipes.reporting import save_figure


@dataclass(frozen=True)
class ArchieLaw:
    """Conductance from the porosity alone: `D = scale * porosity**exponent`.

    Source: Archie 1942, "The electrical resistivity log", with the factor of Winsauer et al. 1952.
    """

    scale: float
    exponent: float

    @classmethod
    def fit(cls, porosity: Tensor, conductance: Tensor, *, with_scale: bool = True) -> "ArchieLaw":
        """Fit the law by least squares of the logarithms.

        Args:
            porosity: Ratio of pores to all cells, between 0 and 1.
            conductance: Conductance relative to the empty box.
            with_scale: Whether to fit the factor, which is 1 otherwise.

        Examples:
            >>> porosity = torch.tensor([0.3, 0.5, 0.7])
            >>> law = ArchieLaw.fit(porosity, 0.8 * porosity**2)
            >>> round(law.scale, 3), round(law.exponent, 3)
            (0.8, 2.0)
        """
        x, y = porosity.double().log(), conductance.double().log()
        columns = [x, torch.ones_like(x)] if with_scale else [x]
        solution = torch.linalg.lstsq(torch.stack(columns, dim=1), y[:, None]).solution[:, 0]
        return cls(float(solution[1].exp()) if with_scale else 1.0, float(solution[0]))

    def __call__(self, porosity: Tensor) -> Tensor:
        return self.scale * porosity**self.exponent


@dataclass(frozen=True)
class Conductances:
    """Relative errors of conductances: mean and median of |predicted - true| / true."""

    mean: float
    median: float

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor) -> "Conductances":
        """Compare two vectors of conductances."""
        relative = (predicted - true).abs() / true
        return cls(float(relative.mean()), float(relative.median()))


def r2(predicted: Tensor, true: Tensor, mask: Tensor) -> float:
    """Return the ratio of explained variance of `true`, over all cells where `mask` is 1."""
    inside = mask > 0
    true = true[inside]
    left = (predicted[inside] - true).square().sum()
    return float(1 - left / (true - true.mean()).square().sum())


def field_scores(predicted: Tensor, true: Tensor, pores: Tensor) -> dict[str, str]:
    """Return the rows of the table for a predicted potential."""
    linear = linear_field(tuple(true.shape[2:])).expand_as(true)
    conductance = effective_conductivity(true, pores)
    return {
        "R² of the potential": f"{r2(predicted, true, pores):z.3f}",
        "R² of its deviation from the linear field": (
            f"{r2(predicted - linear, true - linear, pores):z.3f}"
        ),
        **conductance_scores(effective_conductivity(predicted, pores), conductance),
    }


def conductance_scores(predicted: Tensor, true: Tensor) -> dict[str, str]:
    """Return the rows of the table for a predicted conductance."""
    off = Conductances.of(predicted, true)
    return {
        "error of D_rel, mean": f"{100 * off.mean:.1f} %",
        "error of D_rel, median": f"{100 * off.median:.1f} %",
    }


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return a Markdown table, aligned as plain text too: a row per quantity, a column per method.

    Args:
        columns: Rows of every method; missing entries are left empty.

    Examples:
        >>> print(table({"ours": {"R²": "0.9", "FLOPs": "1 G"}, "law": {"R²": "0.5"}}))
        |       | ours |  law |
        | :---- | ---: | ---: |
        | R²    |  0.9 |  0.5 |
        | FLOPs |  1 G |      |
    """
    names = list(dict.fromkeys(row for rows in columns.values() for row in rows))
    first = max(4, *map(len, names))
    widths = {name: max(4, len(name), *map(len, rows.values())) for name, rows in columns.items()}

    def line(start: str, cells: Sequence[str]) -> str:
        padded = (f"{x:>{w}}" for x, w in zip(cells, widths.values(), strict=True))
        return "| " + " | ".join([f"{start:<{first}}", *padded]) + " |"

    rule = line(":" + "-" * (first - 1), ["-" * (w - 1) + ":" for w in widths.values()])
    rows = [line(name, [rows.get(name, "") for rows in columns.values()]) for name in names]
    return "\n".join([line("", list(columns)), rule, *rows])


def pick(conductance: Tensor, count: int = 3) -> list[int]:
    """Return the numbers of samples evenly spaced in the order of conductance, without its extremes."""
    order = conductance.argsort().tolist()
    return [order[int((i + 0.5) * len(order) / count)] for i in range(count)]


def draw(path: Path, pores: Tensor, potential: Tensor, predictions: Mapping[str, Tensor]) -> None:
    """Draw geometry, true and predicted potential and the errors, a row per sample, flow to the right.

    Args:
        path: PNG to write.
        pores: `(B, 1, H, W)`, flow along H.
        potential: True potential.
        predictions: Predicted potential by name of the network.
    """
    true_d = effective_conductivity(potential, pores)
    fields = {"true potential": potential, **predictions}
    columns = 1 + len(fields) + len(predictions)
    figure = Figure(
        figsize=(2.55 * columns, 2.6 * len(pores) + 1.25), dpi=100, layout="constrained"
    )
    axes = figure.subplots(len(pores), columns, squeeze=False)
    viridis = matplotlib.colormaps["viridis"].with_extremes(bad="0.72")
    diverging = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.72")
    errors = {f"{name}: error": field - potential for name, field in predictions.items()}
    inside = torch.cat([error[pores > 0].abs() for error in errors.values()])
    limit = max(0.05, round(float(inside.quantile(0.98)), 2))

    def show(axis: Any, x: Tensor, i: int, **options: Any) -> Any:
        masked = torch.where(pores[i, 0] > 0, x[i, 0], torch.nan).T.numpy()
        return axis.imshow(masked, origin="lower", interpolation="nearest", **options)

    for i, row in enumerate(axes):
        row[0].imshow(1 - pores[i, 0].T.numpy(), cmap="Greys", vmin=0, vmax=2.6, origin="lower")
        row[0].set_ylabel(f"held-out geometry {i + 1}", fontsize=11)
        row[0].set_xlabel(f"porosity {float(pores[i].mean()):.2f}, flow \u2192", fontsize=11)
        for axis, (name, field) in zip(row[1:], fields.items(), strict=False):
            image = show(axis, field, i, cmap=viridis, vmin=-0.5, vmax=0.5)
            d = float(effective_conductivity(field[i : i + 1], pores[i : i + 1]))
            off = (
                "" if name == "true potential" else f" ({100 * (d / float(true_d[i]) - 1):+.0f} %)"
            )
            axis.set_xlabel(f"D_rel {d:.3f}{off}", fontsize=11)
        for axis, (_, error) in zip(row[1 + len(fields) :], errors.items(), strict=True):
            wrong = show(axis, error, i, cmap=diverging, vmin=-limit, vmax=limit)
            rms = float(error[i][pores[i] > 0].square().mean().sqrt())
            axis.set_xlabel(f"rms {rms:z.3f}", fontsize=11)
    for axis, name in zip(axes[0], ["geometry", *fields, *errors], strict=True):
        axis.set_title(name, fontsize=12)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    bars: dict[str, Any] = {"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.02}
    figure.colorbar(image, ax=list(axes[:, 1 : 1 + len(fields)].flat), label="potential", **bars)
    figure.colorbar(
        wrong,
        ax=list(axes[:, 1 + len(fields) :].flat),
        label="predicted - true",
        extend="both",
        **{**bars, "shrink": 0.8},
    )
    save_figure(path, figure)
