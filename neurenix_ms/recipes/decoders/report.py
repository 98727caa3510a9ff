"""Table of decoders: mean and scatter over seeds, and costs."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from neurenix_ms.recipes.reporting import markdown, scatter

SCORES = {"iou": "IoU", "small": "small discs found", "large": "large discs found"}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a row per network, the best IoU first.

    Args:
        results: One per network and seed.
    """
    names = dict.fromkeys(result["model"] for result in results)
    runs = {name: [r for r in results if r["model"] == name] for name in names}
    heads = ["network", "parameters", *SCORES.values(), "time of a batch", "peak of a step"]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for name in sorted(names, key=lambda name: -mean(r["iou"] for r in runs[name])):
        own = runs[name]
        lines.append(
            [
                name,
                f"{own[0]['parameters']:,}",
                *(scatter([r[key] for r in own]) for key in SCORES),
                f"{1e3 * median(r['time'] for r in own):.0f} ms",
                f"{own[0]['peak'] / 2**20:.0f} MiB",
            ]
        )
    return markdown(lines)
