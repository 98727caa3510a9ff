"""Tables and figures of recipes."""

import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from neurenix_ms._core.io.atomic import write_atomically


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the second row is its rule.

    Examples:
        >>> print(markdown([["a", "b"], ["---", "---:"], ["x", "1"]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def scatter(values: Sequence[float], form: str = ".3f") -> str:
    """Format the mean and the standard deviation of some values; of one value, the value.

    Examples:
        >>> scatter([0.1, 0.2, 0.3]), scatter([0.1]), scatter([1.0, 3.0], ".1e")
        ('0.200 ± 0.100', '0.100', '2.0e+00 ± 1.4e+00')
    """
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG atomically; its folder is made if it is missing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
