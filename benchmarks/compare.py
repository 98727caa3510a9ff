"""A commit in, the benchmarks of it and of this tree side by side out.

`python -m benchmarks.compare HEAD~3 benchmarks/test_unet.py` runs both one after the other, each in a
tree of its own. Times of one machine at two moments differ by tens of per cent; look at large changes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, and print the table of pytest-benchmark.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="The benchmarks of a commit and of this tree, side by side.",
    )
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("only", nargs="*", default=["benchmarks"], help="files of benchmarks")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        _run("git", "worktree", "add", "--quiet", "--detach", str(base), options.base, cwd=HERE)
        try:
            results = [Path(folder, f"{name}.json") for name in ("before", "after")]
            for tree, result in zip((base, HERE), results, strict=True):
                write = f"--benchmark-json={result}"
                _run(sys.executable, "-m", "pytest", "-q", *options.only, write, cwd=tree)
        finally:
            _run("git", "worktree", "remove", "--force", str(base), cwd=HERE)
        table = ["compare", *map(str, results), "--between=min,median"]
        _run(str(Path(sys.executable).with_name("pytest-benchmark")), *table, cwd=HERE)


def _run(*command: str, cwd: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(cwd)}  # its own package, not the installed one
    subprocess.run(command, cwd=cwd, env=environment, check=True)


if __name__ == "__main__":
    main()
