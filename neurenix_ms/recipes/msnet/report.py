"""Tables and figures of MSNets on unseen media."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.msnet import coarsen
from neurenix_ms.recipes.msnet.models import potential_of
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

Result = dict[str, Any]
SHOWN_STEPS = "10"  # of conjugate gradients, in the table


def table(result: Result) -> str:
    """Return the mean relative error of the conductance of every method in percent, a row per set.

    Args:
        result: Everything that was measured.
    """
    laws = _laws(result)
    steps = f"{SHOWN_STEPS} steps, fitted"
    head = ["unseen boxes", "number", "MS-Net", "MS-Net, fitted", f"MS-Net, {steps}"]
    lines = [[*head, f"linear field, {steps}", *laws]]
    lines.append([":---", *["---:"] * (len(lines[0]) - 1)])
    for name, known in result["sets"].items():
        runs = [run["sets"][name] for run in result["runs"]]
        rows = [[_mean(run["flux"]["0"]) for run in runs]]
        rows.append([_mean(run["fitted"]["flux"]["0"]) for run in runs])
        rows.append([_mean(run["fitted"]["energy"][SHOWN_STEPS]) for run in runs])
        rows.append([_mean(known["linear"]["fitted"]["energy"][SHOWN_STEPS])])
        rows += [[_mean(known["laws"][law])] if law in known["laws"] else [] for law in laws]
        cells = [f"{scatter(row, '.1f')} %" if row else "" for row in rows]
        lines.append([name, str(known["number"]), *cells])
    return markdown(lines)


def seed_table(result: Result) -> str:
    """Return the errors of every seed after steps, and their ratio to Archie's law, a row per set.

    The law is fitted at the size of the boxes, or at the largest size of the training.

    Args:
        result: Everything that was measured.
    """
    seeds = [f"seed {run['seed']}" for run in result["runs"]]
    head = ["unseen boxes", *seeds, "median", "largest"]
    lines = [[*head, "ratio to Archie", "largest ratio", "R\u00b2 of the deviation"]]
    lines.append([":---", *["---:"] * (len(lines[0]) - 1)])
    for name, known in result["sets"].items():
        runs = [run["sets"][name] for run in result["runs"]]
        off = [[abs(x) for x in run["fitted"]["energy"][SHOWN_STEPS]] for run in runs]
        means = [100 * statistics.mean(one) for one in off]
        ratios = [mean / _mean(known["laws"][known["same"]]) for mean in means]
        medians = [100 * statistics.median(one) for one in off]
        largest = [100 * max(one) for one in off]
        cells = [*(f"{mean:.1f} %" for mean in means), f"{scatter(medians, '.1f')} %"]
        cells += [f"{scatter(largest, '.0f')} %", scatter(ratios, ".2f"), f"{max(ratios):.2f}"]
        lines.append([name, *cells, scatter([run["r2_deviation"] for run in runs])])
    return markdown(lines)


def cost_table(result: Result) -> str:
    """Return CPU time and memory of predictions, steps and the solver, a column per size.

    Args:
        result: Everything that was measured.
    """
    sizes, tile = result["costs"]["sizes"], result["costs"]["tile"]
    rows: dict[str, tuple[str, Callable[[Any], str]]] = {
        "prediction": ("whole", "{:.2f} s".format),
        f"prediction, tiles of {tile}\u00b3": ("tiles", "{:.2f} s".format),
        "ten steps of conjugate gradients": ("ten_steps", "{:.2f} s".format),
        "solver": ("solver", "{:.1f} s".format),
        "peak memory of the prediction": ("whole_bytes", _mebibytes),
        f"peak memory, tiles of {tile}\u00b3": ("tiles_bytes", _mebibytes),
        "largest difference in tiles": ("difference", "{:.0e}".format),
    }
    lines = [["", *(f"{size}\u00b3" for size in sizes)], [":---", *["---:"] * len(sizes)]]
    for name, (key, form) in rows.items():
        values = [one.get(key) for one in sizes.values()]
        lines.append([name, *("" if value is None else form(value) for value in values)])
    return markdown(lines)


def draw_errors(path: Path, result: Result) -> None:
    """Draw the errors of all methods for every set, and how they fall with steps of a solver.

    Args:
        path: PNG to write.
        result: Everything that was measured.
    """
    sets = result["sets"]
    curves = [name for name in sets if "," not in name][1:]
    figure = Figure(figsize=(11.0, 4.4), dpi=100, layout="constrained")
    left, *others = figure.subplots(
        1, 1 + len(curves), width_ratios=[2.2, *[1.2] * len(curves)], squeeze=False
    )[0]
    laws = _laws(result)
    bars: dict[str, tuple[str, Callable[[str], list[float]]]] = {
        f"MS-Net, {SHOWN_STEPS} steps, fitted": ("tab:red", partial(_own, result, SHOWN_STEPS)),
        "MS-Net, fitted": ("tab:orange", partial(_own, result, "0")),
    }
    for law, color in zip(laws, ("0.75", "0.55", "0.3"), strict=False):
        bars[law] = color, partial(_of_law, result, law)
    width = 0.8 / len(bars)
    for k, (label, (color, values_of)) in enumerate(bars.items()):
        values = {i: values_of(name) for i, name in enumerate(sets) if values_of(name)}
        heights = [statistics.mean(one) for one in values.values()]
        left.bar([i + k * width for i in values], heights, width, color=color, label=label)
        for i, one in values.items():
            if len(one) > 1:  # a point per seed
                left.plot([i + k * width] * len(one), one, ".", color="black", ms=5)
    left.set_xticks([i + 0.4 - width / 2 for i in range(len(sets))])
    left.set_xticklabels([name.replace(", ", "\n").replace(" ", "\n") for name in sets], fontsize=9)
    left.set_ylabel("mean error of D_rel, percent")
    left.set_ylim(top=1.45 * left.get_ylim()[1])  # room for the legend
    left.legend(fontsize=8, frameon=False)
    for axis, name in zip(others, curves, strict=True):
        known = sets[name]["linear"]["fitted"]["energy"]
        axis.plot([int(k) for k in known], [_mean(v) for v in known.values()], "o-", color="0.5")
        for run in result["runs"]:
            own = run["sets"][name]["fitted"]["energy"]
            steps, errors = [int(k) for k in own], [_mean(v) for v in own.values()]
            axis.plot(steps, errors, "o-", color="tab:red", ms=4)
            axis.plot([0], _mean(run["sets"][name]["fitted"]["flux"]["0"]), "x", color="tab:orange")
        axis.set_yscale("log")
        for numbers in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            numbers("{x:.0f}")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("steps of conjugate gradients")
    if others:
        others[0].plot([], [], "o-", color="0.5", label="linear field, energy")
        others[0].plot([], [], "o-", color="tab:red", ms=4, label="MS-Net, energy")
        others[0].plot([], [], "x", color="tab:orange", label="MS-Net, mean flux")
        others[0].set_ylabel("mean error of D_rel, percent, fitted")
        others[0].legend(fontsize=8, frameon=False)
    save_figure(path, figure)


def _own(result: Result, steps: str, name: str) -> list[float]:
    """Return the mean error of every seed in a set after steps, or without any by the mean flux."""
    kind = "flux" if steps == "0" else "energy"
    return [_mean(run["sets"][name]["fitted"][kind][steps]) for run in result["runs"]]


def _of_law(result: Result, law: str, name: str) -> list[float]:
    """Return the mean error of a law in a set, if it has one."""
    errors = result["sets"][name]["laws"].get(law)
    return [] if errors is None else [_mean(errors)]


def _laws(result: Result) -> list[str]:
    """Return the names of the fitted laws, in order."""
    names = dict.fromkeys(law for known in result["sets"].values() for law in known["laws"])
    return [name for name in names if name.startswith("Archie")]


def _mean(errors: Sequence[float]) -> float:
    """Return the mean size of relative errors in percent."""
    return 100 * statistics.mean(abs(error) for error in errors)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


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
