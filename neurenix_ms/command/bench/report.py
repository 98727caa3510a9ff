"""Show a run of `pytest --benchmark-json` as Markdown, as a web page or as CSV.

A page has tables and charts in one file, which needs no network. A table has the time, memory and
operations of every case and their ratios to the reference; CSV has all figures at full precision.
Resident memory is taken from the file RUN_resident.json beside RUN.json, if there is one.

Examples:

  neurenix-ms bench report run.json
  neurenix-ms bench report run.json --group pooling
  neurenix-ms bench report run.json --out run.html
"""

import argparse
from pathlib import Path

FORMATS = ("md", "html", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms bench report`."""
    parser.add_argument("run_file", metavar="RUN.json", type=Path, help="file of a run")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the report; by default that of the --out file, or md",
    )
    parser.add_argument("--group", help="show this group only (md)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write to a file instead of the terminal"
    )


def run(options: argparse.Namespace) -> str | None:
    """Return the report, or None where it was written to a file."""
    from neurenix_ms._core.io.atomic import write_atomically
    from neurenix_ms.bench import page, results, tables

    report = results.read(options.run_file)
    ending = options.out.suffix.removeprefix(".") if options.out else ""
    kind = options.format or (ending if ending in FORMATS else "md")
    if kind == "html":
        text = page.as_page(report, title=options.run_file.stem)
    elif kind == "csv":
        text = tables.as_csv(report)
    else:
        text = tables.as_markdown(report, options.group)
    if options.out is None:
        return text
    write_atomically(options.out, text.encode())
    return None
