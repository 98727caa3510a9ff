"""Train an MSNet to predict conduction through 3-D porous media, and score it.

`python -m neurenix_ms.recipes.msnet` computes porous geometries of six kinds with solved conduction,
trains MSNets of several seeds on boxes of 32 and 64 cells per axis, and scores them on unseen boxes of
these sizes, of 128 cells, and of media of other generators, together with fitted Archie laws, with the
linear field, and with steps of a solver. It writes tables, figures and all errors. An interrupted run
resumes; seeds that are finished are not run again. With a file in `--data`, the boxes are those of your
own rock; its last planes are held out.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.porous import GENERATORS
from neurenix_ms.recipes.demo.report import pick
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.msnet.data import Boxes, Data, Samples, SampleSet, to_fit
from neurenix_ms.recipes.msnet.models import ConductionMSNet, network_inputs
from neurenix_ms.recipes.msnet.report import cost_table, draw, draw_errors, seed_table, table
from neurenix_ms.recipes.msnet.scoring import (
    Laws,
    add_fitted,
    costs,
    linear_start,
    predict,
    scored_start,
)
from neurenix_ms.recipes.msnet.training import (
    CONDUCTANCE_WEIGHT,
    FLUX_WEIGHT,
    ConductionLoss,
    train,
)
from neurenix_ms.recipes.options import check_at_least, readable
from neurenix_ms.recipes.scans import add_scan, own_scan

PARTS = ("level", "flux", "conductance", "mirrors")
STEPS = (0, 5, 10, 20)  # of conjugate gradients, from a prediction
PLAIN_STEPS = (*STEPS, 40)  # the same from the linear field


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options, scan, reading = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options) if scan is None else Boxes(options, scan)
    with reading():
        seen = data.seen()
        unseen = data.unseen()
    laws = Laws(seen, data.num_kinds)
    run = {"size": options.size, "seed": options.seed, **data.facts}
    seen_sets = to_fit(seen)
    sets = unseen | seen_sets
    plain = _scores(linear_start, sets, PLAIN_STEPS, run, options.out / "plain", options.fresh)
    add_fitted(plain, unseen, seen_sets)
    result: dict[str, Any] = {
        "options": _noted(options),
        "laws": laws.noted(),
        "sets": {
            name: {
                "number": len(one.samples),
                "D_rel": [round(float(sample["D_rel"]), 5) for sample in one.samples],
                "porosity": [round(float(sample["pores"].mean()), 5) for sample in one.samples],
                "laws": laws.errors(one),
                "same": laws.same(one),
                "linear": plain[name],
            }
            for name, one in unseen.items()
        },
        "runs": [],
    }
    models = []
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        samples = [one for part in seen for one in part]
        model, run, took = _trained(options, seed, samples, data.facts)
        folder = options.out / f"seed_{seed}"
        in_tiles = partial(predict, model, tile_size=2 * options.size)  # larger boxes only
        scores = _scores(in_tiles, sets, STEPS, run, folder, options.fresh)
        add_fitted(scores, unseen, seen_sets)
        result["runs"].append({"seed": seed, **took, "sets": scores})
        models.append((model, run))
    model, run = models[0]
    one_of_each = [one.samples[0] for one in unseen.values() if one.of_seen_kinds]
    measure = partial(costs, model, one_of_each, 2 * options.size)
    settings = run | {"sizes": [one.size for one in unseen.values()]}
    result["costs"] = _kept(options.out / "costs.json", settings, measure, options.fresh)
    result["samples"] = {"cpu_seconds": round(data.seconds, 1), "left_out": data.left_out}
    return _reported(options, data.title, result, model, unseen)


def _reported(
    options: argparse.Namespace,
    title: str,
    result: dict[str, Any],
    model: ConductionMSNet,
    unseen: dict[str, SampleSet],
) -> str:
    """Write all results; return the table."""
    text = table(result)
    facts = title + (
        f"Trained on {options.samples} boxes of {options.size}\u00b3 and {options.large_samples} of "
        f"{2 * options.size}\u00b3 cells; epochs: {options.epochs}, seeds: {len(result['runs'])}, "
        f"samples omitted, not converged: {result['samples']['left_out']}."
    )
    files = {
        "msnet.json": json.dumps(result) + "\n",
        "msnet.md": f"{text}\n\n{facts}\n",
        "msnet_seeds.md": seed_table(result) + "\n",
        "msnet_costs.md": cost_table(result) + "\n",
    }
    for name, content in files.items():
        write_atomically(options.out / name, content.encode())
    shown = [_middle(one.samples) for one in list(unseen.values())[:2]]
    with torch.no_grad():
        deviations = [
            model(network_inputs(one["pores"][None], one["distance"][None])) for one in shown
        ]
    draw(options.out / "msnet.png", shown, deviations)
    draw_errors(options.out / "msnet_errors.png", result)
    names = ", ".join([*files, "msnet.png", "msnet_errors.png"])
    print(f"\n{text}\n\n{facts}\n{options.out}: {names}")
    return text


def _trained(
    options: argparse.Namespace, seed: int, seen: Samples, facts: dict[str, Any]
) -> tuple[ConductionMSNet, dict[str, Any], dict[str, float]]:
    """Train the network of a seed, or resume; return it, its settings, and wall and CPU time."""
    without = set(options.without)
    torch.manual_seed(seed)
    level = "level" not in without
    model = ConductionMSNet(options.filters, options.growth, options.scales, level=level)
    model = model.to(memory_format=torch.channels_last_3d)
    names = ("samples", "large_samples", "size", "seed", "epochs", "filters", "growth", "scales")
    run = {name: getattr(options, name) for name in names}
    run |= {"weights_seed": seed, "without": sorted(without), **facts}
    folder = options.out / f"seed_{seed}"
    forget_other_run(folder, run, options.fresh)
    loss = ConductionLoss(
        flux=0.0 if "flux" in without else FLUX_WEIGHT,
        conductance=0.0 if "conductance" in without else CONDUCTANCE_WEIGHT,
    )
    mirrored = "mirrors" not in without
    wall, cpu = train(model, seen, options.epochs, folder, loss=loss, mirrored=mirrored, seed=seed)
    return model.eval(), run, {"wall": round(wall, 1), "cpu": round(cpu, 1)}


def _kept(
    path: Path, settings: dict[str, Any], measure: Callable[[], Any], fresh: bool = False
) -> Any:
    """Return what an earlier run with these settings measured, or measure it and keep it."""
    settings = json.loads(json.dumps(settings))
    if path.exists() and not fresh:
        known = json.loads(path.read_text("utf-8"))
        if known["settings"] == settings:
            return known["measured"]
    measured = measure()
    write_atomically(path, json.dumps({"settings": settings, "measured": measured}).encode())
    return measured


def _scores(
    start_of: Callable[[dict[str, Tensor]], Tensor],
    sets: dict[str, SampleSet],
    num_steps: Sequence[int],
    run: dict[str, Any],
    folder: Path,
    fresh: bool,
) -> dict[str, Any]:
    """Score approximate potentials of all sets, and steps from them; sets scored before are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for name, one in tqdm(sets.items(), desc="scoring", unit="set", leave=False):
        settings = run | {"set": name, "number": len(one.samples), "steps": num_steps}
        measure = partial(scored_start, start_of, one.samples, num_steps)
        file = f"{name.replace(chr(0xB3), '').replace(', ', '_').replace(' ', '_')}.json"
        scores[name] = _kept(folder / file, settings, measure, fresh)
    return scores


def _noted(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that results depend on."""
    left_out = ("out", "data", "fresh", "key", "shape", "dtype", "pore_values")
    return {name: value for name, value in vars(options).items() if name not in left_out}


def _middle(samples: Samples) -> dict[str, Tensor]:
    """Return the sample of median conductance."""
    return samples[pick(torch.stack([one["D_rel"] for one in samples]), 1)[0]]


def _options(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, DiskArray | None, Callable[[], AbstractContextManager[None]]]:
    """Return the options, the user's own scan, and a context in which its errors have one line."""
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.msnet",
        description="Train MSNets on conduction through 3-D porous media, and score them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    numbers = {
        "samples": (648, "geometries to train on"),
        "large-samples": (96, "of twice the size to train on as well; 0: none"),
        "held-out": (96, "unseen ones of the same size"),
        "larger": (48, "unseen ones of twice the size"),
        "largest": (6, "unseen ones of four times the size, predicted in tiles; 0: none"),
        "other": (12, "unseen ones of twice the size of each of the generators; 0: none"),
        "size": (32, "cells along each axis"),
        "epochs": (1, "passes over all geometries"),
        "filters": (4, "channels of the finest stage"),
        "growth": (2, "ratio of channels, coarser by finer"),
        "scales": (4, "number of scales, 1 to 4"),
        "seed": (0, "of the geometries"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(range(5)),
        help="random seeds of weights and order",
    )
    parser.add_argument(
        "--generators",
        nargs="*",
        choices=GENERATORS,
        default=["polydisperse_spheres", "fibers"],
        help="other media to test with; not for a file in --data",
    )
    parser.add_argument(
        "--without", nargs="*", choices=PARTS, default=[], help="parts of the network to omit"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/msnet"), help="folder of results and checkpoints"
    )
    add_scan(parser, "labels of your own rock, of three axes, flow along the first")
    parser.add_argument("--fresh", action="store_true", help="ignore earlier results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, samples=2, held_out=2, larger=2, epochs=1, seed=0, seeds=0)
    check_at_least(parser, options, large_samples=0, largest=0, other=0)
    options.seeds = list(dict.fromkeys(options.seeds))
    if not 1 <= options.scales <= 4:
        parser.error(f"--scales must be between 1 and 4, got {options.scales}")
    if options.size < 16 or options.size % 8:
        parser.error(f"--size must be a multiple of 8 and at least 16, got {options.size}")
    planes = 4 if options.large_samples else 3
    least = (planes * options.size, 2 * options.size, 2 * options.size)
    why = f"for boxes of --size {options.size}, and unseen ones of twice the size"
    scan = own_scan(parser, options, least, why)
    if scan is not None:
        options.largest, options.other = 0, 0
    return options, scan, partial(readable, parser) if scan is not None else nullcontext
