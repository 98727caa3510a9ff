"""Flow charts as inline SVG, with the text inside the boxes, readable on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from neurenix_ms.bench.svg import ACCENT, FONT, INK, svg, text

LETTER = 6.1  # mean width of a letter of the label, rounded up
DIGIT = 6.7  # width of a character of the monospaced shape
LINE = 14
PAD = 7
GAP = 12  # between boxes of a row
DROP = 24  # between rows, for an arrow
LANE = 16  # to the right of all boxes, for an arrow that passes them
NARROWEST = 150

Point = tuple[float, float]
Kind = Literal["data", "step", "learnt"]


@dataclass(frozen=True)
class Node:
    """A box with text in it.

    Args:
        name: Name in arrows.
        label: Text; a line break starts a new line.
        shapes: Lines below the label, such as the shape of the output.
        kind: "data" is rounded, "learnt" is shaded, "step" is neither.
    """

    name: str
    label: str
    shapes: tuple[str, ...] = ()
    kind: Kind = "step"

    @property
    def labels(self) -> list[str]:
        """The label line by line."""
        return self.label.split("\n") if self.label else []

    @property
    def width(self) -> float:
        """The width of the longest line, with padding."""
        lengths = [LETTER * len(line) for line in self.labels]
        lengths += [DIGIT * len(line) for line in self.shapes]
        return max(lengths, default=0) + 2 * PAD

    @property
    def height(self) -> float:
        """The height of all lines, with padding."""
        return LINE * (len(self.labels) + len(self.shapes)) + PAD + 1


@dataclass(frozen=True)
class Arrow:
    """An arrow from one box to another.

    Args:
        start: Name of the first box.
        end: Name of the second.
        around: Pass the boxes in between on the right side.
    """

    start: str
    end: str
    around: bool = False


def chart(rows: Sequence[Sequence[Node | None]], arrows: Sequence[Arrow], *, title: str) -> str:
    """Draw boxes row by row, each row spread evenly, and the arrows between them.

    Args:
        rows: Boxes from top to bottom; None leaves a position empty.
        arrows: Connections between boxes.
        title: Description of the drawing for screen readers.

    Returns:
        HTML in one line.

    Raises:
        ValueError: If an arrow names a box that does not exist.

    Examples:
        >>> drawn = chart([[Node("x", "x")], [Node("y", "y")]], [Arrow("x", "y")], title="Half")
        >>> drawn.count("<rect"), drawn.count("<polygon")
        (2, 1)
    """
    places, width, height = _arrange(rows)
    nodes = {node.name: node for row in rows for node in row if node is not None}
    parts = [_box(node, places[name]) for name, node in nodes.items()]
    lane = width
    for arrow in arrows:
        for name in (arrow.start, arrow.end):
            if name not in nodes:
                raise ValueError(f"an arrow needs one of the boxes {list(nodes)}, got {name!r}")
        ends = nodes[arrow.start], places[arrow.start], nodes[arrow.end], places[arrow.end]
        if arrow.around:
            parts.append(_around(*ends, lane + LANE / 2))
            lane += LANE
        else:
            parts.append(_straight(*ends))
    return svg(parts, lane + (2 if lane > width else 0), height, title=title, enlarged=1.2)


def between(rows: Sequence[Sequence[Node | None]]) -> list[Arrow]:
    """Connect every row to the next, one to one if both rows have the same number of boxes.

    Args:
        rows: Boxes from top to bottom.
    """
    arrows = []
    named = [[node.name for node in row if node is not None] for row in rows]
    for above, below in pairwise(named):
        if len(above) == len(below):
            pairs = list(zip(above, below, strict=True))
        else:
            pairs = [(a, b) for a in above for b in below]
        arrows += [Arrow(a, b) for a, b in pairs]
    return arrows


def _arrange(rows: Sequence[Sequence[Node | None]]) -> tuple[dict[str, Point], float, float]:
    """Return the center of every box, and the size of the chart."""
    cells = [max(node.width for node in row if node) + GAP for row in rows]
    width = max([NARROWEST, *(cell * len(row) for cell, row in zip(cells, rows, strict=True))])
    places, y = {}, 3.0
    for row in rows:
        height = max(node.height for node in row if node)
        for i, node in enumerate(row):
            if node is not None:
                places[node.name] = (width * (i + 0.5) / len(row), y + height / 2)
        y += height + DROP
    return places, width, y - DROP + 3


def _box(node: Node, place: Point) -> str:
    x, y = place
    width, height = node.width, node.height
    radius = {"data": height / 2 if height < 34 else 14}.get(node.kind, 2)
    fill = 0.3 if node.kind == "learnt" else 0.06
    shape = (
        f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="{radius:.0f}" fill="{ACCENT}" fill-opacity="{fill}" '
        f'stroke="{ACCENT}" stroke-width="1.2"/>'
    )
    top = y - height / 2 + PAD / 2 - 2.5
    lines = [text(line, x, top + LINE * (i + 1)) for i, line in enumerate(node.labels)]
    top += LINE * len(node.labels)
    lines += [_mono(line, x, top + LINE * (i + 1)) for i, line in enumerate(node.shapes)]
    return shape + "".join(lines)


def _mono(words: str, x: float, y: float) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="{FONT - 0.5}" '
        f'font-family="var(--md-code-font-family, monospace), monospace" '
        f'fill="{INK}">{words}</text>'
    )


def _straight(start: Node, a: Point, end: Node, b: Point) -> str:
    """Draw an arrow between the facing edges of two boxes."""
    if a[1] == b[1]:
        way = 1 if a[0] < b[0] else -1
        return _path(
            [(a[0] + way * start.width / 2, a[1]), (b[0] - way * (end.width / 2 + 2), b[1])]
        )
    way = 1 if a[1] < b[1] else -1
    return _path([(a[0], a[1] + way * start.height / 2), (b[0], b[1] - way * (end.height / 2 + 2))])


def _around(start: Node, a: Point, end: Node, b: Point, lane: float) -> str:
    right = b[0] + end.width / 2 + 2
    return _path([(a[0] + start.width / 2, a[1]), (lane, a[1]), (lane, b[1]), (right, b[1])])


def _path(points: list[Point]) -> str:
    """Draw a line through points, with an arrowhead at the last one."""
    (x0, y0), (x1, y1) = points[-2:]
    length = max(1.0, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    u, v = 6 * (x1 - x0) / length, 6 * (y1 - y0) / length
    bx, by = x1 - u, y1 - v
    corners = (x1, y1), (bx - v / 2, by + u / 2), (bx + v / 2, by - u / 2)
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points[:-1], (bx, by)])
    return (
        f'<polyline points="{line}" fill="none" stroke="{INK}" stroke-width="1.1"/>'
        f'<polygon points="{head}" fill="{INK}"/>'
    )
