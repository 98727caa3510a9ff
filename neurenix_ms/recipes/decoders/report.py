"""Table of decoders: mean and scatter over seeds, and costs."""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

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
                *(spread([r[key] for r in own]) for key in SCORES),
                f"{1e3 * median(r['time'] for r in own):.0f} ms",
                f"{own[0]['peak'] / 2**20:.0f} MiB",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation; of one value, the value.

    Examples:
        >>> spread([0.5, 0.6, 0.7]), spread([0.5])
        ('0.600 ± 0.100', '0.500')
    """
    scatter = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{scatter}"
