"""Inline SVG that follows the light and the dark theme of its page."""

from collections.abc import Sequence
from html import escape

INK = "var(--md-default-fg-color)"
ACCENT = "var(--md-primary-fg-color)"
FONT = 11


def svg(
    parts: Sequence[str], width: float, height: float, *, title: str, enlarged: float = 1.5
) -> str:
    """Put SVG elements into one image that shrinks with the page.

    Args:
        parts: Elements, as text.
        width: Width of the image in its own units, each about a pixel of a phone.
        height: Height in the same units.
        title: Description of the image for screen readers.
        enlarged: Largest number of pixels per unit on a wide page.
    """
    name = escape(title)
    body = "".join(parts).replace("\n", " ")
    return (
        f'<div><svg role="img" aria-label="{name}" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="display:block;width:100%;max-width:{enlarged * width:.0f}px;margin:1em auto">'
        f"<title>{name}</title>{body}</svg></div>"
    )


def text(words: str, x: float, y: float, *, anchor: str = "middle") -> str:
    """Draw a line of text whose baseline is at `y`.

    Args:
        words: The text; it may hold any character.
        x: Where the anchor is.
        y: The baseline.
        anchor: "start", "middle" or "end".
    """
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{FONT}" '
        f'fill="{INK}">{escape(words)}</text>'
    )
