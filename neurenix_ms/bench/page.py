"""A web page of a run that stands alone: tables and charts, no scripts, nothing from elsewhere."""

from collections.abc import Sequence
from html import escape

from neurenix_ms.bench import charts
from neurenix_ms.bench.results import COLUMNS, Report, Row
from neurenix_ms.bench.tables import GROWING, cells, left_out, varied_numbers

BARS = ("time", "tensor_peak_bytes")
PARETO = [(cost, gain) for gain in ("error", "params") for cost in BARS]
STYLE = """
:root { --md-default-fg-color: #1d2125; --md-primary-fg-color: #00796b; --back: #fff; --rule: #ddd;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --md-default-fg-color: #e3e6e8; --md-primary-fg-color: #4db6ac; --back: #16191c;
    --rule: #444; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--md-default-fg-color); background: var(--back);
  max-width: 1100px; margin: 0 auto; padding: 1em; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 0.25em 0.7em; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th.words, td.words { text-align: left; }
.wide { overflow-x: auto; }
.charts { display: grid; gap: 1.5em;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; }
h3 { font-size: 1em; margin-bottom: 0; }
a { color: var(--md-primary-fg-color); }
"""


def as_page(report: Report, title: str = "Benchmarks") -> str:
    """Return a run as one file of HTML.

    Args:
        report: A run.
        title: The heading.
    """
    names = list(report.groups)
    links = " · ".join(f'<a href="#g{i}">{escape(name)}</a>' for i, name in enumerate(names))
    sections = [_section(i, name, report.rows(name)) for i, name in enumerate(names)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<p>{escape(report.machine)}</p>\n<nav>{links}</nav>\n"
        f"{''.join(sections)}</body></html>\n"
    )


def _section(number: int, name: str, rows: Sequence[Row]) -> str:
    drawn = [
        (COLUMNS[field][0], charts.bars(rows, name, field))
        for field in BARS
        if any(row.value(field) is not None for row in rows)
    ]
    for varied in varied_numbers(rows):
        for field in GROWING:
            if chart := charts.growth(rows, name, varied, field):
                drawn.append((f"{COLUMNS[field][0]} by {varied}", chart))
    for cost, gain in PARETO:
        if chart := charts.pareto(rows, name, cost, gain):
            drawn.append((f"{COLUMNS[gain][0]} against {COLUMNS[cost][0]}", chart))
    figures = "".join(f"<figure><h3>{escape(words)}</h3>{chart}</figure>" for words, chart in drawn)
    note = left_out(rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<section id="g{number}"><h2>{escape(name)}</h2>\n{_table(rows)}{below}\n'
        f'<div class="charts">{figures}</div></section>\n'
    )


def _table(rows: Sequence[Row]) -> str:
    head, *lines = cells(rows, COLUMNS)
    words = head.index("variant") + 1
    classes = [' class="words"' if i < words else "" for i in range(len(head))]
    top = "".join(f"<th{c}>{escape(cell)}</th>" for c, cell in zip(classes, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{c}>{escape(x)}</td>' for c, x in zip(classes, line, strict=True))}</tr>"
        for line in lines
    )
    return f'<div class="wide" tabindex="0"><table><tr>{top}</tr>{body}</table></div>'
