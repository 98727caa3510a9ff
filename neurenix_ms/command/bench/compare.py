"""Show two runs side by side, or this tree beside a commit (`--base`).

Bytes and operations are those of every run, so any change of them is shown; times only where they
differ by a tenth or more. With --base, the benchmarks of the commit run in a worktree of their own,
then those of this tree; nothing in the repository changes.

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
        help="run the benchmarks of this commit and of this tree, each in a tree of its own. Times "
        "at two moments differ by tens of per cent: look at large changes",
    )
    parser.add_argument(
        "--all", action="store_true", help="also cases in which nothing has changed"
    )


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
