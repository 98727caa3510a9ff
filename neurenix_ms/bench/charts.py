"""Charts of measured costs: bars, growth and Pareto fronts."""

import math
from collections.abc import Callable, Sequence
from html import escape

from neurenix_ms.bench.results import COLUMNS, Row, as_number
from neurenix_ms.bench.svg import ACCENT, FONT, INK, svg, text
from neurenix_ms.bench.tables import GROWING, exponent, series

WIDTH = 360  # of a chart; about the width of a phone screen
HEIGHT = 200
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 28, 34
LINE = 14
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")

Point = tuple[float, float]
Show = Callable[[float], str]


def bars(rows: Sequence[Row], group: str, field: str) -> str:
    """Draw a bar per case, the reference in grey.

    Args:
        rows: The cases of a group.
        group: Its name, for the title.
        field: "time" (the median of the rounds), or another figure that was measured.

    Raises:
        ValueError: If no case has the figure.
    """
    rows = [row for row in rows if row.value(field) is not None]
    if not rows:
        raise ValueError(f"group {group!r} has no value of {field!r}")
    title, show = COLUMNS.get(field, (field, as_number))
    largest = max(row.value(field) for row in rows) or 1
    parts = []
    for i, row in enumerate(rows):
        y, value = 30 * i, row.value(field)
        color = f'fill="{INK}" fill-opacity="0.4"' if row.is_baseline else f'fill="{ACCENT}"'
        length = max(1, WIDTH * value / largest)
        parts.append(text(row.label, 0, y + 11, anchor="start"))
        parts.append(text(show(value), WIDTH, y + 11, anchor="end"))
        parts.append(f'<rect x="0" y="{y + 15}" width="{length:.1f}" height="9" rx="1" {color}/>')
    return svg(parts, WIDTH, 30 * len(rows), title=f"{group}: {title}")


def growth(rows: Sequence[Row], group: str, name: str, field: str) -> str | None:
    """Draw how a figure grows with a number that a group varies, on logarithmic axes, with exponents.

    Args:
        rows: The cases of a group.
        group: Its name, for the title.
        name: What is varied, for example "size".
        field: One of time, tensor_peak_bytes and flops.

    Returns:
        The chart, or None if no variant was measured at three values or more.
    """
    found = []
    for words, cases in series(rows, name):
        points = [(float(row.setting[name]), row.value(field)) for row in cases]
        power = exponent([x for x, _ in points], [y for _, y in points])
        if power is not None:
            found.append((f"{words}: exponent {power:.2f}", sorted(points)))
    if not found:
        return None
    axes = _Axes([point for _, points in found for point in points])
    parts = axes.parts(name, COLUMNS[field][0], as_number, GROWING[field])
    for i, (words, points) in enumerate(found):
        places = [axes.place(point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{DASHES[i % len(DASHES)]}"' if i % len(DASHES) else ""
        stroke = f'fill="none" stroke="{ACCENT}" stroke-width="1.5"{dash}'
        parts.append(f'<polyline points="{line}" {stroke}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ACCENT}"/>' for x, y in places]
        y = HEIGHT + LINE * (i + 0.7)
        parts.append(f'<line x1="0" y1="{y - 4:.1f}" x2="28" y2="{y - 4:.1f}" {stroke}/>')
        parts.append(text(words, 34, y, anchor="start"))
    title = f"{group}: {COLUMNS[field][0]} by {name}"
    return svg(parts, WIDTH, HEIGHT + LINE * len(found), title=title)


def pareto(rows: Sequence[Row], group: str, across: str, up: str) -> str | None:
    """Draw two figures of every variant in one setting; a line joins the Pareto-optimal variants.

    The setting with most variants is drawn; if there are several, the last one, which usually is the
    largest.

    Args:
        rows: The cases of a group.
        group: Its name, for the title.
        across: The cost, for example "time".
        up: The other figure, better if smaller, for example "error" or "params".

    Returns:
        The chart, or None if fewer than two variants have both figures above zero and finite.
    """
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if all(0 < (row.value(field) or 0) < math.inf for field in (across, up)):
            settings.setdefault(repr(row.setting), []).append(row)
    known = max(reversed(settings.values()), key=len, default=[])
    points = [(float(row.value(across)), float(row.value(up))) for row in known]
    if len(set(points)) < 2:
        return None
    axes = _Axes(points)
    best = front(points)
    titles = [COLUMNS[field][0] for field in (across, up)]
    parts = axes.parts(titles[0], titles[1], COLUMNS[across][1], COLUMNS[up][1])
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(axes.place, best))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{ACCENT}" stroke-width="1.2"/>')
    for i, (row, point) in enumerate(zip(known, points, strict=True), 1):
        x, y = axes.place(point)
        strength = "0.9" if point in best else "0.25"
        label = escape(row.label)
        circle = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ACCENT}" fill-opacity="{strength}">'
        )
        parts.append(f"{circle}<title>{label}</title></circle>")
        parts.append(text(str(i), x + (7 if x < WIDTH - 30 else -7), y - 5))
        mark = "best: " if point in best else ""
        parts.append(text(f"{i}  {mark}{row.label}", 0, HEIGHT + LINE * (i - 0.3), anchor="start"))
    title = f"{group}: {titles[1]} against {titles[0]}"
    return svg(parts, WIDTH, HEIGHT + LINE * len(known), title=title)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto-optimal points, from left to right.

    Args:
        points: Pairs of costs.

    Examples:
        >>> front([(1, 9), (2, 3), (3, 4), (5, 1)])
        [(1, 9), (2, 3), (5, 1)]
    """
    kept: list[Point] = []
    for point in sorted(set(points)):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


class _Axes:
    """Logarithmic axes around points."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.xs, self.ys = (_limits(values) for values in zip(*points, strict=True))

    def place(self, point: Point) -> Point:
        x, y = _part(point[0], self.xs), _part(point[1], self.ys)
        across = LEFT + x * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    def parts(self, across: str, up: str, show_x: Show, show_y: Show) -> list[str]:
        left, bottom, right = LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT
        thin = f'stroke="{INK}" stroke-width="0.8"'
        parts = [
            f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" {thin}/>',
            f'<line x1="{left}" y1="{TOP}" x2="{left}" y2="{bottom}" {thin}/>',
        ]
        for anchor, x in zip(("start", "end"), self.xs, strict=True):
            at, _ = self.place((x, self.ys[0]))
            parts.append(text(show_x(x), at, bottom + FONT + 2, anchor=anchor))
        for y in self.ys:
            _, at = self.place((self.xs[0], y))
            parts.append(text(show_y(y), left - 4, at + 4, anchor="end"))
        parts.append(text(across, (left + right) / 2, bottom + 2 * FONT + 5))
        parts.append(text(up, 0, FONT, anchor="start"))
        return parts


def _limits(values: Sequence[float]) -> Point:
    """Return the smallest and the largest value, moved apart where they are one."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low / 2, high * 2)


def _part(value: float, limits: Point) -> float:
    low, high = (math.log(limit) for limit in limits)
    return (math.log(value) - low) / (high - low)
