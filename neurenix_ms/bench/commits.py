"""Benchmarks of a commit and of the working tree, each run in a separate worktree."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from neurenix_ms.bench.results import Report, read


def measured_at(base: str, only: Sequence[str], here: Path | None = None) -> tuple[Report, Report]:
    """Run the benchmarks of a commit, then those of the working tree.

    Args:
        base: The commit.
        only: Files or folders of benchmarks, relative to the root of the repository.
        here: A folder of the repository; the current one if None.

    Returns:
        Both runs.

    Raises:
        ValueError: If this is no git repository, there is no such commit, or a run fails.
    """
    root = _root(here or Path.cwd())
    _check_commit(base, root)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "base")
        _run("git", "worktree", "add", "--quiet", "--detach", str(tree), base, cwd=root)
        try:
            before, after = (
                _measured(place, only, Path(folder, f"{name}.json"))
                for place, name in ((tree, "before"), (root, "after"))
            )
        finally:
            _run("git", "worktree", "remove", "--force", str(tree), cwd=root)
    return before, after


def _root(folder: Path) -> Path:
    """Return the folder of the repository that a folder is in."""
    _run("git", "--version", cwd=folder)
    try:
        return Path(_run("git", "rev-parse", "--show-toplevel", cwd=folder).strip())
    except ValueError as error:
        raise ValueError(
            "a commit can be compared only inside a working tree of git, got the folder "
            f"{folder} ({_last_line(error)})"
        ) from None


def _check_commit(base: str, root: Path) -> None:
    try:
        words = ["--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}"]
        _run("git", "rev-parse", *words, cwd=root)
    except ValueError:
        raise ValueError(f"the commit must be one of the repository {root}, got {base!r}") from None


def _last_line(error: ValueError) -> str:
    return str(error).splitlines()[-1]


def _measured(tree: Path, only: Sequence[str], file: Path) -> Report:
    _run(sys.executable, "-m", "pytest", "-q", *only, f"--benchmark-json={file}", cwd=tree)
    return read(file)


def _run(*command: str, cwd: Path) -> str:
    # the package of the tree comes first, not the installed one
    paths = [str(cwd), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
        )
    except OSError as error:
        raise ValueError(
            f"{command[0]} must be installed to compare commits, got {error}"
        ) from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr + error.stdout).strip().splitlines()
        last = said[-1] if said else f"exit status {error.returncode}"
        more = "\n".join(said[-20:])
        raise ValueError(
            f"{' '.join(command)} must run without an error in {cwd}, got: {last}\n{more}"
        ) from None
    return done.stdout
