"""Compare two runs, or the working tree with a commit (`--base`).

Bytes and FLOPs are the same in every run, so every change of them is shown. Times are shown if they
differ by a tenth or more. With --base, the benchmarks of the commit run in a separate worktree, and then
those of the working tree. Nothing in the repository changes.

Examples:

  neurenix-ms bench compare before.json after.json
  neurenix-ms bench compare before.json after.json --all
  neurenix-ms bench compare --base HEAD~1 benchmarks/test_unet.py
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms bench compare`."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="two files of `pytest --benchmark-json`; with --base, the benchmarks to run",
    )
    parser.add_argument(
        "--base",
        metavar="COMMIT",
        help="run the benchmarks of this commit and of the working tree, each in a separate worktree. "
        "Times of two runs differ by tens of percent: only large changes are meaningful",
    )
    parser.add_argument("--all", action="store_true", help="also show unchanged cases")


def run(options: argparse.Namespace) -> str:
    """Return the table."""
    from pathlib import Path

    from neurenix_ms.bench.commits import measured_at
    from neurenix_ms.bench.results import read
    from neurenix_ms.bench.side_by_side import as_text

    if options.base is not None:
        before, after = measured_at(options.base, options.paths or ["benchmarks"])
    else:
        if len(options.paths) != 2:
            raise ValueError(f"two files must be given, or --base COMMIT, got {options.paths}")
        before, after = (read(Path(path)) for path in options.paths)
    return as_text(before, after, everything=options.all)
