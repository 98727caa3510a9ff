"""Table and figure of the errors at speeds seen and not seen in training."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neurenix_ms.recipes.conditioned.training import SEEN, UNSEEN
from neurenix_ms.recipes.reporting import markdown, save_figure, scatter

NAMES = {
    "condition": "condition of every block",
    "channel": "input channel",
    "none": "not at all",
}
COLORS = {"condition": "tab:red", "channel": "tab:blue", "none": "0.6"}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: mean and standard deviation over the seeds, and every seed.

    Args:
        results: Results of all networks.
    """
    seeds = sorted({result["seed"] for result in results})
    head = ["the speed enters as", "parameters", "seen speeds", "other speeds"]
    lines = [[*head, *(f"seed {seed}" for seed in seeds), "CPU time"]]
    lines.append([":---", *["---:"] * (len(seeds) + 4)])
    for way, name in NAMES.items():
        own = sorted((r for r in results if r["way"] == way), key=lambda r: r["seed"])
        if not own:
            continue
        unseen = [statistics.mean(r["unseen"]) for r in own]
        seen = [statistics.mean(r["seen"]) for r in own]
        seconds = statistics.mean(r["cpu_seconds"] for r in own)
        lines.append(
            [
                name,
                f"{own[0]['parameters']:,}",
                scatter(seen),
                f"**{scatter(unseen)}**",
                *(f"{value:.3f}" for value in unseen),
                f"{seconds:.0f} s",
            ]
        )
    return markdown(lines)


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Draw the error at every speed, a thin line per seed and a thick one for their mean.

    Args:
        path: PNG to write.
        results: Results of all networks.
    """
    figure = Figure(figsize=(7.2, 4.0), dpi=110, layout="constrained")
    axis = figure.subplots()
    order = sorted(range(len(SEEN) + len(UNSEEN)), key=lambda i: (*SEEN, *UNSEEN)[i])
    speeds = [(*SEEN, *UNSEEN)[i] for i in order]
    for way, name in NAMES.items():
        curves = [
            [[*r["seen"], *r["unseen"]][i] for i in order] for r in results if r["way"] == way
        ]
        if not curves:
            continue
        for curve in curves:
            axis.plot(speeds, curve, color=COLORS[way], lw=0.7, alpha=0.5)
        mean = [statistics.mean(values) for values in zip(*curves, strict=True)]
        axis.plot(speeds, mean, color=COLORS[way], lw=2.4, marker="o", ms=4, label=name)
    for speed in SEEN:
        axis.axvline(speed, color="0.85", lw=1, zorder=0)
    axis.set_yscale("log")
    axis.set_xlabel("speed of the wave (vertical lines: speeds of the training)")
    axis.set_ylabel("relative error")
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncol": 3}
    axis.legend(title="the speed enters as", fontsize=8, title_fontsize=8, frameon=False, **place)
    save_figure(path, figure)
