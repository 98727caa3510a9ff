"""Experiments on several systems and seeds: their options, finished runs and results."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.recipes.options import (
    add_data,
    check_at_least,
    own_array,
    readable,
    time_step,
)

Settings = TypeVar("Settings")


def parser_of(
    name: str, description: str, systems: Sequence[str], own: str
) -> argparse.ArgumentParser:
    """Return a parser with the options of such an experiment.

    Args:
        name: Name of the recipe.
        description: What it does.
        systems: Names of the systems.
        own: What a file in `--data` holds.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m neurenix_ms.recipes.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out = Path("runs") / name
    add = parser.add_argument
    add("--system", nargs="+", choices=systems, help="what is solved; all if nothing is given")
    add("--iterations", type=int, help="steps of Adam; by default by system")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="random seeds; every model is trained once for each",
    )
    add("--out", type=Path, default=out, help="folder of tables and figures")
    add("--runs", type=Path, default=out, help="folder of finished runs and checkpoints")
    add_data(parser, own, "trajectories")
    add("--fresh", action="store_true", help="ignore finished runs and checkpoints")
    return parser


def parsed(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    systems: Mapping[str, Settings],
    own: Callable[[DiskArray, argparse.Namespace], tuple[str, Settings]],
) -> tuple[argparse.Namespace, dict[str, Settings]]:
    """Return the options of a command line, checked, and the settings of the systems to run.

    Both folders of results are made.

    Args:
        parser: Parser of `parser_of`.
        argv: Command line without the name of the program; by default that of the process.
        systems: Settings of all systems.
        own: Function that returns name and settings of the system of a file in `--data`, from the array
            and the options. If there is `--dt`, they have its value.
    """
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, seeds=0)
    array = own_array(parser, options)
    if "dt" in options:
        options.dt = time_step(parser, options, array)
    if array is None:
        chosen = {name: systems[name] for name in options.system or systems}
    elif options.system is not None:
        parser.error(f"--system is for solved trajectories, got the file {array.path} in --data")
    else:
        with readable(parser):
            chosen = dict([own(array, options)])
    options.runs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are small
    return options, chosen


def finished(
    note: Path, iterations: int, fresh: bool, run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the result of a run, from the file of an earlier one with as many steps if there is one.

    Args:
        note: The file.
        iterations: Steps of Adam.
        fresh: Run in any case.
        run: Function that runs and returns the result.
    """
    if fresh or not note.exists() or _read(note)["iterations"] != iterations:
        write_atomically(note, json.dumps(run()).encode())
    return _read(note)


def write_results(out: Path, name: str, figures: Mapping[str, Any], text: str) -> None:
    """Write figures and table of all runs, and print the table; a picture is expected beside them.

    Args:
        out: Folder.
        name: Name of the files.
        figures: What to write in JSON.
        text: The table.
    """
    write_atomically(out / f"{name}.json", json.dumps(figures, indent=1).encode())
    write_atomically(out / f"{name}.md", f"{text}\n".encode())
    print(f"\n{text}\n\n{out / name}.json, .md, .png")


def _read(note: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found
