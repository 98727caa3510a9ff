"""Correct the advection of a drifting density by the fluxes of a U-Net, and score it for three days.

`python -m neurenix_ms.recipes.hybrid` trains hybrids and plain U-Nets on the densities of the recipe
`ocean`, rolls them out on unseen samples of five kinds of currents, and writes a table, figures and an
animation. An interrupted run resumes.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.hybrid.models import (
    DriftAdvection,
    DriftNetwork,
    HybridDrift,
    carried,
    images_of,
)
from neurenix_ms.recipes.hybrid.report import animate, draw_densities, draw_errors, table_of
from neurenix_ms.recipes.ocean.command import SINK
from neurenix_ms.recipes.ocean.options import noted, parsed
from neurenix_ms.recipes.ocean.rollouts import HELD_OUT_SEED, Step, samples_of, scored, stacked
from neurenix_ms.recipes.ocean.scores import noise_of
from neurenix_ms.recipes.ocean.training import Sample, train

KINDS: dict[str, dict[str, Any]] = {
    "eddies": {},
    "land": {"land": 6},
    "sink": {"sink": SINK},
    "reversed": {"time_reversed": True},
    "source": {"sink": SINK, "time_reversed": True},
}
SEEN = {"eddies": 4, "land": 1, "sink": 1, "source": 1}  # shares of the training samples
FLUX_SUBSTEPS = 48
Samples = list[Sample]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = parsed(
        argv,
        "hybrid",
        "Correct the advection of a density by the fluxes of a U-Net, and score it.",
        samples=84,
        epochs=4,
        unroll=4,
        seeds=3,
        seeds_others=1,
    )
    torch.set_num_threads(1)  # the networks are small
    options.out.mkdir(parents=True, exist_ok=True)
    seed = options.data_seed + HELD_OUT_SEED
    unseen = {
        kind: stacked(samples_of(currents, options.held_out, seed, options), images_of)
        for kind, currents in KINDS.items()
    }
    result: dict[str, Any] = {"options": noted(options), "kinds": {}, "ways": {}}
    for kind, (density, _) in unseen.items():
        result["kinds"][kind] = noise_of(density, options.particles)
    shown: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, step in _classical(options.size).items():
        result["ways"][name] = {"runs": [scored(step, unseen, shown, name)]}
    seen = [one for kind in SEEN for one in _seen(kind, options)]
    for name, seeds in (("hybrid", options.seeds), ("U-Net", options.seeds_others)):
        for turn in range(seeds):
            print(f"{name}, seed {options.seed + turn}", flush=True)
            model, wall, cpu = _trained(name, options.seed + turn, seen, options)
            run = scored(model, unseen, shown if turn == 0 else {}, name)
            way = {"parameters": parameter_table(model)[-1][1], "runs": []}
            way = result["ways"].setdefault(name, way)
            way["runs"].append(run | {"wall": wall, "cpu": cpu})
    write_atomically(options.out / "hybrid.json", (json.dumps(result) + "\n").encode())
    table = table_of(result)
    write_atomically(options.out / "hybrid.md", (table + "\n").encode())
    draw_errors(options.out / "hybrid_errors.png", result)
    truth = {kind: density for kind, (density, _) in unseen.items()}
    draw_densities(options.out / "hybrid.png", truth, shown)
    animate(options.out / "hybrid.gif", truth, shown)
    print(f"\n{table}\n\n{options.out / 'hybrid'}.json, .md, .png and .gif")
    return table


def _classical(size: int) -> dict[str, Step]:
    """Return the steps without parameters."""
    return {
        "advection of point values": carried,
        "advection in flux form": DriftAdvection(size, "flux", FLUX_SUBSTEPS),
        "advection of cell averages": DriftAdvection(size),
    }


def _seen(kind: str, options: argparse.Namespace) -> Samples:
    """Return the training samples of one kind."""
    count = max(1, round(options.samples * SEEN[kind] / sum(SEEN.values())))
    return samples_of(KINDS[kind], count, options.data_seed, options)


def _trained(
    name: str, seed: int, samples: Samples, options: argparse.Namespace
) -> tuple[nn.Module, float, float]:
    """Train a network, or resume; return it with its wall time and CPU time in seconds."""
    torch.manual_seed(seed)
    features = tuple(options.features)
    model = HybridDrift(options.size, features) if name == "hybrid" else DriftNetwork(features)
    folder = options.out / "runs" / f"{name}_{seed}"
    forget_other_run(folder, noted(options, training=True), options.fresh)
    took = train(
        model,
        samples,
        options.epochs,
        folder,
        unroll=options.unroll,
        seed=seed,
        progress=not options.quiet,
        maps_of=images_of,
    )
    return model.eval(), *took
