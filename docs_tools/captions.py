"""Captions of tables: a mkdocs hook.

A paragraph that begins with "Table:" and precedes a table becomes its caption, above the part
of the page that scrolls. A table without one is labelled for screen readers by the heading or the
title of the section that it stands in.
"""

import html as text_of_html
import re
from typing import Any

CAPTION = r"<p>Table: (?P<caption>(?:(?!</p>).)*)</p>\s*<table>"
HEADING = r"<h[1-6][^>]*>(?P<heading>.*?)</h[1-6]>"
SECTION = r'<span class="doc-section-title">(?P<section>.*?)</span>'
PLACES = re.compile(f"{CAPTION}|{HEADING}|{SECTION}|(?P<plain><table>)", re.DOTALL)
LINKS = re.compile(r'<a class="headerlink".*?</a>', re.DOTALL)
TAGS = re.compile(r"<[^>]+>")


def captioned(html: str) -> str:
    """Return a page in which every table has a caption or a label.

    Args:
        html: Content of the page.

    Examples:
        >>> print(captioned("<p>Table: Errors in metres.</p><table></table>"))
        <p class="table-caption" id="table-1">Errors in metres.</p>
        <table aria-labelledby="table-1"></table>
        >>> captioned("<h2>Speed</h2><table></table>")
        '<h2>Speed</h2><table aria-label="Speed"></table>'
    """
    heading, section, count = "", "", 0

    def labelled(found: re.Match[str]) -> str:
        nonlocal heading, section, count
        if found["caption"] is not None:
            count += 1
            name = f"table-{count}"
            return (
                f'<p class="table-caption" id="{name}">{found["caption"]}</p>\n'
                f'<table aria-labelledby="{name}">'
            )
        if found["heading"] is not None:
            heading, section = _words(found["heading"]), ""
        elif found["section"] is not None:
            section = _words(found["section"]).rstrip(":")
        else:
            words = f"{section} of {heading}" if section else heading or "Table"
            return f'<table aria-label="{text_of_html.escape(words)}">'
        return found[0]

    return PLACES.sub(labelled, html)


def _words(html: str) -> str:
    """Return the text of some HTML."""
    plain = TAGS.sub(" ", LINKS.sub("", html))
    return " ".join(text_of_html.unescape(plain).replace("¶", "").split())


def on_page_content(html: str, **kwargs: Any) -> str:
    """Label the tables of a page; called by mkdocs."""
    return captioned(html)
