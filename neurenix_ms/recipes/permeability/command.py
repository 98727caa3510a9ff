"""Train an MSNet to predict the permeability of periodic 3-D porous media, and score it.

`python -m neurenix_ms.recipes.permeability` solves Stokes flow along each axis of random boxes of four
kinds, trains MSNets of several seeds to predict the velocity along the flow, and scores the permeability
of unseen boxes, together with Kozeny and Carman's law and others that are fitted to the same boxes. It
writes a table, a figure and all errors. An interrupted run resumes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.options import add_cache, check_at_least
from neurenix_ms.recipes.permeability.data import KINDS, boxes
from neurenix_ms.recipes.permeability.laws import (
    kozeny_carman_constant,
    law_predictions,
    true_permeability,
)
from neurenix_ms.recipes.permeability.models import FlowMSNet
from neurenix_ms.recipes.permeability.report import draw, table
from neurenix_ms.recipes.permeability.training import TurnedFlow, train

HELD_OUT_SEED = 1  # added to that of the boxes of the training


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    seen = boxes(options.cache, options.samples, options.size, options.seed)
    unseen = boxes(options.cache, options.held_out, options.size, options.seed + HELD_OUT_SEED)
    truth = true_permeability(unseen)
    constant = kozeny_carman_constant(seen)
    laws = law_predictions(seen, unseen, [radius for _, radius in KINDS])
    result: dict[str, Any] = {
        "options": {k: v for k, v in vars(options).items() if k not in ("out", "cache", "fresh")},
        "kozeny_carman_constant": constant,
        "porosity": [round(float(one["pores"].mean()), 5) for one in unseen],
        "true": truth.tolist(),
        "laws": {name: found.tolist() for name, found in laws.items()},
        "runs": [],
    }
    training, testing = TurnedFlow(seen, constant), TurnedFlow(unseen, constant)
    shown: list[Tensor] = []
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        model, took = _trained(options, seed, training)
        result["parameters"] = parameter_table(model)[-1][1]
        known = predictions(model, training)[0]
        found, r2, fields = predictions(model, testing)
        scale = float((true_permeability(seen) / known).log().mean().exp())
        run = {"seed": seed, **took, "r2": r2, "scale": scale, "predicted": found.tolist()}
        result["runs"].append(run)
        shown.append(fields)
    text = table(result)
    facts = (
        f"Trained on {options.samples} boxes of {options.size}\u00b3 voxels with the flow along each of "
        f"three axes, tested on {options.held_out}; epochs: {options.epochs}, seeds: "
        f"{len(options.seeds)}."
    )
    write_atomically(options.out / "permeability.json", f"{json.dumps(result)}\n".encode())
    write_atomically(options.out / "permeability.md", f"{text}\n\n{facts}\n".encode())
    draw(options.out / "permeability.png", result, unseen[0], shown[0])
    print(
        f"\n{text}\n\n{facts}\n{options.out}: permeability.json, permeability.md, permeability.png"
    )
    return text


def _trained(
    options: argparse.Namespace, seed: int, data: TurnedFlow
) -> tuple[FlowMSNet, dict[str, float]]:
    """Train the network of a seed, or resume; return it and its wall and CPU time."""
    torch.manual_seed(seed)
    model = FlowMSNet(options.filters, options.growth, options.scales)
    names = ("samples", "size", "seed", "epochs", "filters", "growth", "scales")
    run = {name: getattr(options, name) for name in names} | {"weights_seed": seed}
    folder = options.out / f"seed_{seed}"
    forget_other_run(folder, run, options.fresh)
    wall, cpu = train(model, data, options.epochs, folder, seed=seed)
    return model.eval(), {"wall": round(wall, 1), "cpu": round(cpu, 1)}


@torch.no_grad()
def predictions(model: FlowMSNet, data: TurnedFlow) -> tuple[Tensor, float, Tensor]:
    """Predict all boxes along all axes, not mirrored.

    Returns:
        The permeability `(N, 3)`, not below a thousandth of that of Kozeny and Carman; R\u00b2 of the
        velocity in units of that law, over all pores; the velocity of the first box along axis 0.
    """
    num_boxes = len(data.samples)
    found = torch.zeros(num_boxes, 3, dtype=torch.double)
    wrong, true = [], []
    first = torch.empty(0)
    for index in range(data.num_geometries):
        axis, box = divmod(index, num_boxes)
        x, target = data[index]
        velocity = model(x[None])[-1][0, 0]
        inside = target[1] > 0
        wrong.append((velocity - target[0])[inside])
        true.append(target[0][inside])
        found[box, axis] = float(velocity.mean().clamp(min=1e-3)) * data.units[box]
        if index == 0:
            first = velocity * data.units[box]
    spread = torch.cat(true).double()
    r2 = 1 - torch.cat(wrong).double().square().mean() / spread.var(correction=0)
    return found, round(float(r2), 5), first


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.permeability",
        description="Train MSNets on Stokes flow through periodic 3-D porous media, and score them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    numbers = {
        "samples": (36, "boxes to train on, each with the flow along three axes"),
        "held-out": (24, "unseen boxes to test on"),
        "size": (32, "voxels along each axis"),
        "epochs": (8, "passes over all boxes and axes"),
        "filters": (4, "channels of the finest stage"),
        "growth": (2, "ratio of channels, coarser by finer"),
        "scales": (3, "number of scales, 1 to 4"),
        "seed": (0, "random seed of the boxes"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds of weights and order"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/permeability"), help="folder of results"
    )
    add_cache(
        parser, "solved boxes", "python -m neurenix_ms.recipes.msnet --data FILE (conduction)"
    )
    parser.add_argument("--fresh", action="store_true", help="ignore earlier results")
    options = parser.parse_args(argv)
    kinds = len(KINDS)
    check_at_least(parser, options, samples=kinds, held_out=2, epochs=1, seed=0, seeds=0)
    check_at_least(parser, options, filters=1, growth=1)
    options.seeds = list(dict.fromkeys(options.seeds))
    if not 1 <= options.scales <= 4:
        parser.error(f"--scales must be between 1 and 4, got {options.scales}")
    if options.size < 16 or options.size % 8:
        parser.error(f"--size must be a multiple of 8 and at least 16, got {options.size}")
    return options
