"""Train and predict in exact tiles that several processes share.

`torchrun --nproc-per-node 2 -m neurenix_ms.recipes.domain` trains a U-Net on one image or volume on
disk, predicts into another, and compares output, loss and gradient with those of the whole input in one
process. Without torchrun it runs as one process. An interrupted run, once resumed, ends with the same
weights as an uninterrupted one. With a file in `--data`, the network learns to remove noise from an
image or a volume of your own.
"""

import argparse
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets.scanned import checksum
from neurenix_ms.execution.plan.sharing import num_levels
from neurenix_ms.recipes.domain.arrays import LEAST_SIZE, OwnImage, make_arrays, open_zarr
from neurenix_ms.recipes.domain.costs import Machine, layouts_of, scaling_table, time_of_slabs
from neurenix_ms.recipes.domain.measuring import costs, differences
from neurenix_ms.recipes.domain.processes import Processes, started_processes
from neurenix_ms.recipes.domain.report import draw, measured_table, weak_table
from neurenix_ms.recipes.domain.run import Run, digest, network, predict, train
from neurenix_ms.recipes.options import add_data, check_at_least, own_array, readable

SIZE, DIMS = 512, 2  # of an image that is made
RUN = ("size", "dims", "features", "norm", "precision", "seed")
MADE = ("x.zarr", "target.zarr", "y.zarr")


def main(
    argv: Sequence[str] | None = None, on_step: Callable[[int], None] = lambda step: None
) -> dict[str, Any]:
    """Train or resume, predict, compare, and return what was found.

    Args:
        argv: Command line without the name of the program; by default that of the process.
        on_step: Called with the number of every finished training step.

    Raises:
        ValueError: If `--out` holds a run with other settings. The number of processes, tiles and
            steps may change.
    """
    options, own, reading = _options(argv)
    torch.set_num_threads(options.threads)
    with started_processes() as processes:
        settings = {name: getattr(options, name) for name in RUN}
        with reading():
            if own is not None:
                found = checksum(own.array) if processes.rank == 0 else None
                settings["data"] = processes.gathered(found)[0]
            if processes.rank == 0:
                _prepare(options, settings, own)
        processes.wait()
        return _run(options, settings, processes, on_step)


def _run(
    options: argparse.Namespace,
    settings: dict[str, Any],
    processes: Processes,
    on_step: Callable[[int], None],
) -> dict[str, Any]:
    first = processes.rank == 0
    _check_settings(options, settings)
    run = Run(
        settings,
        network(options.features, options.norm, options.dims, options.seed, options.precision),
        open_zarr(options.out / "x.zarr"),
        open_zarr(options.out / "target.zarr"),
        options.tile,
        options.whole,
        options.schedule,
        processes,
        visible=not options.quiet,
        shared=tuple(options.shared),
    )
    losses = train(run, options.steps, options.out / "last.pt", options.checkpoint_every, on_step)
    y = open_zarr(predict(run, options.out), "r+")
    found = {
        "processes": processes.size,
        "threads": options.threads,
        "losses": losses,
        "weights": processes.gathered(digest(run.model)),
    }
    if not options.no_compare:
        found["differences"] = differences(run, y)
    if options.rounds:
        found["costs"] = costs(run, y, options.rounds)
    if options.weak:
        found["weak"] = _weak(options, run)
    if first:
        _report(options, run, found)
    processes.wait()
    return found


def _prepare(options: argparse.Namespace, settings: dict[str, Any], own: OwnImage | None) -> None:
    """Make folder, settings and arrays where they are missing."""
    options.out.mkdir(parents=True, exist_ok=True)
    note = options.out / "settings.json"
    if options.fresh:
        for name in MADE:
            shutil.rmtree(options.out / name, ignore_errors=True)
        for path in (note, options.out / "last.pt", options.out / "results.json"):
            path.unlink(missing_ok=True)
    if not note.exists():
        if own is not None:
            _ = own.moments  # raises here if the file is not usable
        write_atomically(note, json.dumps(settings).encode())
    elif json.loads(note.read_text("utf-8")) != settings:
        return  # all processes raise
    size = (options.size,) * options.dims if own is None else own.array.shape
    make_arrays(options.out, size, options.seed, own)


def _check_settings(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    known = json.loads((options.out / "settings.json").read_text("utf-8"))
    if known != settings:
        raise ValueError(
            f"--out must hold a run with {settings}, got {known}; choose another --out, or --fresh"
        )


def _weak(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Measure an input with a core of `--weak` positions per axis for every process."""
    edge, size = options.weak, run.processes.size
    folder = options.out / f"weak-{edge}-{size}"
    if run.processes.rank == 0:
        folder.mkdir(exist_ok=True)
        make_arrays(folder, (edge * size, *(edge,) * (options.dims - 1)), options.seed)
    run.processes.wait()
    x, target = (open_zarr(folder / f"{name}.zarr") for name in ("x", "target"))
    wide = dataclasses.replace(run, x=x, target=target)
    setting, levels = wide.setting(size), len(options.features)
    if setting is not None and num_levels(setting.shared) < levels:
        raise ValueError(
            f"--weak must be so long that all {levels} levels are shared, which the prediction takes "
            f"for granted, got {edge}, where {num_levels(setting.shared)} are"
        )
    found = costs(wide, open_zarr(predict(wide, folder), "r+"), options.rounds, edge)
    found["edge"] = edge
    if run.processes.rank == 0:
        layout = layouts_of(run.model, tuple(x.shape))[-1]
        found["predicted"] = time_of_slabs(layout, edge, options.dims, size)
    return found


def _report(options: argparse.Namespace, run: Run, found: dict[str, Any]) -> None:
    """Add what was found to the results of other numbers of processes; write tables and figure."""
    store = options.out / "results.json"
    results: dict[str, Any] = json.loads(store.read_text("utf-8")) if store.exists() else {}
    results[f"{found['processes']}x{found['threads']}"] = found
    write_atomically(store, (json.dumps(results, indent=1) + "\n").encode())
    losses = found["losses"]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} on {found['processes']} process(es)")
    for name, value in found.get("differences", {}).items():
        print(f"largest difference from one process, {name}: {value:.1e}")
    if options.rounds:
        table = measured_table(results)
        write_atomically(options.out / "domain.md", table.encode())
        print(f"\n{table}")
    if options.weak:
        table = weak_table(results, options.weak)
        write_atomically(options.out / "weak.md", table.encode())
        print(f"\n{table}")
    draw(options.out / "domain.png", run)
    if options.scaling:
        positions = math.prod(run.x.shape[2:])
        seconds = found["costs"]["inference, whole"]["cpu_seconds"][0] / positions
        layouts = layouts_of(run.model, tuple(run.x.shape))
        table = scaling_table(layouts, options.scaling, options.dims, Machine(seconds))
        write_atomically(options.out / "scaling.md", table.encode())
        print(f"\n{table}")
    print(store)


def _options(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, OwnImage | None, Callable[[], AbstractContextManager[None]]]:
    """Return the options, the user's own image, and a context in which its errors have one line."""
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.domain",
        description="Train and predict in exact tiles that the processes of torchrun share.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--size", type=int, help=f"pixels or voxels along each axis; {SIZE} if nothing is given")
    add("--dims", type=int, choices=(2, 3), help=f"spatial axes; {DIMS} if nothing is given")
    add("--features", type=int, nargs="+", default=[8, 16, 32], help="channels of the levels")
    add("--norm", default="instance", choices=("batch", "group", "instance", "none"))
    add("--precision", type=int, default=32, choices=(32, 64), help="bits of a number")
    add("--tile", default="auto", help="edge length of a tile, or auto: one tile per process")
    add("--whole", nargs="*", default=["auto"], help="submodules run whole, or auto")
    add("--shared", nargs="*", default=[], help="submodules that processes share; see --whole auto")
    add(
        "--schedule",
        default="auto",
        choices=("auto", "passes", "in_step"),
        help="how tiles run: one after another, or in step",
    )
    add("--steps", type=int, default=10, help="training steps of the whole run")
    add("--checkpoint-every", type=int, default=5, help="steps between checkpoints")
    add("--threads", type=int, default=1, help="threads of every process")
    add("--seed", type=int, default=0, help="random seed of images and weights")
    add("--rounds", type=int, default=0, help="measure time and memory in so many rounds")
    add("--scaling", type=int, help="predict weak scaling with cores of this edge length")
    add(
        "--weak",
        type=int,
        help="measure weak scaling: a core of this edge length for every process",
    )
    add("--no-compare", action="store_true", help="skip the comparison with one process")
    add("--out", type=Path, default=Path("runs/domain"), help="folder of arrays and results")
    add_data(
        parser, "an image or a volume of your own, from whose noisy copy it is predicted", None
    )
    add(
        "--fresh", action="store_true", help="remove the arrays and results of an earlier run first"
    )
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    least = {"size": LEAST_SIZE, "features": 1, "steps": 1, "checkpoint_every": 1, "threads": 1}
    check_at_least(parser, options, **least, seed=0, rounds=0, scaling=1, weak=8)
    if options.tile != "auto":
        if not options.tile.isdecimal() or int(options.tile) < 1:
            parser.error(f"--tile must be a number of at least 1 or auto, got {options.tile}")
        options.tile = int(options.tile)
    if options.no_compare and options.rounds:
        parser.error("--rounds must be 0 with --no-compare, since it runs the whole input")
    for name in ("scaling", "weak"):
        if getattr(options, name) and not options.rounds:
            parser.error(
                f"--rounds must be at least 1 with --{name}, which needs measured times, got 0"
            )
    options.norm = None if options.norm == "none" else options.norm
    options.whole = "auto" if options.whole == ["auto"] else tuple(options.whole)
    array = own_array(parser, options)
    if array is None:
        options.size, options.dims = options.size or SIZE, options.dims or DIMS
        return options, None, nullcontext
    for name in ("size", "dims"):
        if getattr(options, name) is not None:
            parser.error(
                f"--{name} is for an image that is made, got the file {array.path} in --data"
            )
    options.size, options.dims = list(array.shape), array.ndim
    with readable(parser):
        return options, OwnImage(array), partial(readable, parser)
