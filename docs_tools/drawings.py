"""Data-flow drawings as inline SVG, in the light and the dark theme of the site."""

from collections.abc import Sequence
from dataclasses import dataclass

from neurenix_ms.bench.svg import ACCENT, INK, svg, text

LINE = 14
LETTER = 6.2  # mean width of a letter
GAP = 30
LARGEST = 56  # side of a box at full resolution

Place = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A tensor or an operation of a data flow.

    Args:
        name: Name in arrows.
        label: Text below the box; a line break starts a new line.
        size: Side of the box relative to full resolution.
        filled: Draw the box in the accent color, to emphasize it.
    """

    name: str
    label: str = ""
    size: float = 1.0
    filled: bool = False

    @property
    def side(self) -> float:
        """The length of a side, which has a minimum."""
        return max(8.0, LARGEST * self.size)

    @property
    def lines(self) -> list[str]:
        """The label line by line."""
        return self.label.split("\n") if self.label else []

    @property
    def width(self) -> float:
        """The width of the box and its label."""
        return max([self.side, *(LETTER * len(line) for line in self.lines)])


def flow(
    columns: Sequence[Sequence[Box | None]], arrows: Sequence[tuple[str, ...]], *, title: str
) -> str:
    """Draw a data flow from left to right.

    Args:
        columns: Boxes of every column from top to bottom; None leaves a position empty. Boxes at
            the same position of their columns form a row.
        arrows: Names of the first and the second box, optionally followed by a label.
        title: Description of the drawing for screen readers.

    Returns:
        HTML in one line, to be printed by an executed block of a page.

    Raises:
        ValueError: If an arrow names a box that does not exist.

    Examples:
        >>> drawing = flow([[Box("x")], [Box("y", size=0.5)]], [("x", "y", "pool")], title="Half")
        >>> drawing.startswith("<div>"), "pool" in drawing
        (True, True)
    """
    places, width, height = _arrange(columns)
    boxes = {box.name: box for column in columns for box in column if box is not None}
    parts = [_box(box, places[name]) for name, box in boxes.items()]
    for start, end, *label in arrows:
        for name in (start, end):
            if name not in boxes:
                raise ValueError(f"an arrow needs one of the boxes {list(boxes)}, got {name!r}")
        ends = _ends(boxes[start], places[start], boxes[end], places[end])
        parts.append(_arrow(*ends, "".join(label)))
    return svg(parts, width, height, title=title)


def _arrange(columns: Sequence[Sequence[Box | None]]) -> tuple[dict[str, Place], float, float]:
    """Return the center of every box, and the size of the drawing."""
    num_rows = max(map(len, columns))
    rows = [[column[i] for column in columns if i < len(column)] for i in range(num_rows)]
    tops, y = [], 6.0 + LINE
    for row in rows:
        sides = [box.side for box in row if box]
        tops.append(y + max(sides, default=0) / 2)
        y += max(sides, default=0) + LINE * max((len(box.lines) for box in row if box), default=0)
        y += GAP / 2
    places, x = {}, 6.0
    for column in columns:
        width = max((box.width for box in column if box), default=0)
        for box, top in zip(column, tops, strict=False):
            if box is not None:
                places[box.name] = (x + width / 2, top)
        x += width + GAP
    return places, x - GAP + 6, y - GAP / 2 + 6


def _box(box: Box, place: Place) -> str:
    x, y = place
    half = box.side / 2
    strength = 0.9 if box.filled else 0.15
    shape = (
        f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{box.side:.1f}" '
        f'height="{box.side:.1f}" rx="2" fill="{ACCENT}" fill-opacity="{strength}" '
        f'stroke="{ACCENT}" stroke-width="1.5"/>'
    )
    lines = [text(line, x, y + half + LINE * (i + 0.85)) for i, line in enumerate(box.lines)]
    return shape + "".join(lines)


def _ends(start: Box, a: Place, end: Box, b: Place) -> tuple[Place, Place]:
    """Return the ends of an arrow between two boxes, which leave the labels free."""
    if a[0] == b[0] and a[1] < b[1]:
        below = start.side / 2 + LINE * len(start.lines) + 4
        return (a[0], a[1] + below), (b[0], b[1] - end.side / 2 - 3)
    if a[0] == b[0]:
        below = end.side / 2 + LINE * len(end.lines) + 4
        return (a[0], a[1] - start.side / 2 - 3), (b[0], b[1] + below)
    way = 1 if a[0] < b[0] else -1
    return (a[0] + way * (start.side / 2 + 3), a[1]), (b[0] - way * (end.side / 2 + 3), b[1])


def _arrow(start: Place, end: Place, label: str) -> str:
    (x0, y0), (x1, y1) = start, end
    length = max(1.0, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    u, v = 7 * (x1 - x0) / length, 7 * (y1 - y0) / length
    bx, by = x1 - u, y1 - v
    corners = (x1, y1), (bx - v / 2, by + u / 2), (bx + v / 2, by - u / 2)
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    line = (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{bx:.1f}" y2="{by:.1f}" stroke="{INK}" '
        f'stroke-width="1.2"/><polygon points="{head}" fill="{INK}"/>'
    )
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    if not label:
        return line
    if y0 == y1:
        return line + text(label, x, y - 4)
    if y0 < y1:
        return line + text(label, x + 8, y, anchor="start")
    return line + text(label, x - 8, y, anchor="end")
