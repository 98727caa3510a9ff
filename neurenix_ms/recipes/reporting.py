"""Tables and figures of recipes."""

import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from neurenix_ms._core.io.atomic import write_atomically

FRAME = 500  # milliseconds
SLOW = 3  # ratio of the duration of the last frame of an animation to that of the others


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the second row is its rule.

    Examples:
        >>> print(markdown([["a", "b"], ["---", "---:"], ["x", "1"]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def scatter(values: Sequence[float], form: str = ".3f", form_of_spread: str | None = None) -> str:
    """Format the mean and the standard deviation of some values; of one value, the value.

    Examples:
        >>> scatter([0.1, 0.2, 0.3]), scatter([0.1]), scatter([1.0, 3.0], ".1e", ".0e")
        ('0.200 ± 0.100', '0.100', '2.0e+00 ± 1e+00')
    """
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):{form_of_spread or form}}"


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG atomically; its folder is made if it is missing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def save_animation(path: Path, frames: Iterable[Figure]) -> None:
    """Write a GIF atomically, which repeats; its folder is made if it is missing."""
    images = []
    for figure in frames:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
        images.append(drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=[FRAME] * (len(images) - 1) + [FRAME * SLOW],
        loop=0,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
