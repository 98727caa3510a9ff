"""Correct the advection of a drifting density by the fluxes of a U-Net, and score it for three days.

`python -m neurenix_ms.recipes.hybrid` trains hybrids and plain U-Nets on the densities of the recipe
`ocean`, rolls them out on unseen samples of five kinds of currents, and writes a table and two figures.
An interrupted run resumes.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.conservation import rollout
from neurenix_ms.datasets import DriftDensity
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.hybrid.models import (
    DriftAdvection,
    DriftNetwork,
    HybridDrift,
    carried,
)
from neurenix_ms.recipes.hybrid.report import draw_densities, draw_errors, table_of
from neurenix_ms.recipes.hybrid.training import images_of, train
from neurenix_ms.recipes.ocean.command import HELD_OUT_SEED, SINK
from neurenix_ms.recipes.ocean.scores import noise_of, scores
from neurenix_ms.recipes.options import check_at_least

KINDS: dict[str, dict[str, Any]] = {
    "eddies": {},
    "land": {"land": 6},
    "sink": {"sink": SINK},
    "reversed": {"time_reversed": True},
    "source": {"sink": SINK, "time_reversed": True},
}
SEEN = {"eddies": 4, "land": 1, "sink": 1, "source": 1}  # shares of the training samples
FLUX_SUBSTEPS = 48
Samples = list[dict[str, Tensor]]
Step = Callable[[Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    torch.set_num_threads(1)  # the networks are small
    options.out.mkdir(parents=True, exist_ok=True)
    unseen = {
        kind: _stacked(_samples(kind, options.held_out, options.data_seed + HELD_OUT_SEED, options))
        for kind in KINDS
    }
    result: dict[str, Any] = {"options": _noted(options), "kinds": {}, "ways": {}}
    for kind, (density, _) in unseen.items():
        result["kinds"][kind] = noise_of(density, options.particles)
    shown: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, step in _classical(options.size).items():
        result["ways"][name] = {"runs": [_tested(step, unseen, shown, name)]}
    seen = [one for kind in SEEN for one in _seen(kind, options)]
    for name, seeds in (("hybrid", options.seeds), ("U-Net", options.seeds_others)):
        for turn in range(seeds):
            print(f"{name}, seed {options.seed + turn}", flush=True)
            model, wall, cpu = _trained(name, options.seed + turn, seen, options)
            run = _tested(model, unseen, shown if turn == 0 else {}, name)
            way = {"parameters": parameter_table(model)[-1][1], "runs": []}
            way = result["ways"].setdefault(name, way)
            way["runs"].append(run | {"wall": wall, "cpu": cpu})
    write_atomically(options.out / "hybrid.json", (json.dumps(result) + "\n").encode())
    table = table_of(result)
    write_atomically(options.out / "hybrid.md", (table + "\n").encode())
    draw_errors(options.out / "hybrid_errors.png", result)
    truth = {kind: density for kind, (density, _) in unseen.items()}
    draw_densities(options.out / "hybrid.png", truth, shown)
    print(f"\n{table}\n\n{options.out / 'hybrid'}.json, .md and .png")
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
    return _samples(kind, count, options.data_seed, options)


def _samples(kind: str, count: int, seed: int, options: argparse.Namespace) -> Samples:
    made = DriftDensity(
        options.data,
        count,
        options.size,
        options.steps,
        num_particles=options.particles,
        seed=seed,
        progress=not options.quiet,
        **KINDS[kind],
    )
    return [made[i] for i in range(count)]


def _stacked(samples: Samples) -> tuple[Tensor, Tensor]:
    """Stack densities `(B, T + 1, N, N)` and fields `(B, T, FIELDS, N, N)` of samples."""
    density, fields = zip(*map(images_of, samples), strict=True)
    return torch.stack(density), torch.stack(fields)


@torch.no_grad()
def _tested(
    step: Step,
    unseen: dict[str, tuple[Tensor, Tensor]],
    shown: dict[str, dict[str, Tensor]],
    name: str,
) -> dict[str, Any]:
    """Return the scores of a step on all kinds; store the first sample's prediction in `shown`."""
    run: dict[str, Any] = {}
    for kind, (density, fields) in unseen.items():
        predicted = rollout(step, density[:, :1], fields, fields.shape[1])
        run[kind] = scores(predicted, density[:, 1:])
        run[kind]["least"] = float(predicted.min())
        if kind in shown:
            shown[kind][name] = predicted[0]
    return run


def _trained(
    name: str, seed: int, samples: Samples, options: argparse.Namespace
) -> tuple[nn.Module, float, float]:
    """Train a network, or resume; return it with its wall time and CPU time in seconds."""
    torch.manual_seed(seed)
    features = tuple(options.features)
    model = HybridDrift(options.size, features) if name == "hybrid" else DriftNetwork(features)
    folder = options.out / "runs" / f"{name}_{seed}"
    tests_only = ("seed", "seeds", "seeds_others", "held_out")
    run = {key: value for key, value in _noted(options).items() if key not in tests_only}
    forget_other_run(folder, run, options.fresh)
    took = train(
        model,
        samples,
        options.epochs,
        folder,
        unroll=options.unroll,
        seed=seed,
        progress=not options.quiet,
    )
    return model.eval(), *took


def _noted(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a result depends on."""
    without_effect = ("out", "data", "fresh", "quiet")
    return {name: value for name, value in vars(options).items() if name not in without_effect}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.hybrid",
        description="Correct the advection of a density by the fluxes of a U-Net, and score it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=84, help="samples to train on, of all kinds")
    parser.add_argument("--held-out", type=int, default=16, help="unseen samples of each kind")
    parser.add_argument("--size", type=int, default=64, help="cells along each axis")
    parser.add_argument("--steps", type=int, default=12, help="steps of six hours")
    parser.add_argument("--particles", type=int, default=10_000, help="particles of a sample")
    parser.add_argument("--epochs", type=int, default=4, help="passes over all windows")
    parser.add_argument("--unroll", type=int, default=4, help="steps per training window")
    parser.add_argument(
        "--features", type=int, nargs="+", default=[8, 16, 32], help="channels, fine to coarse"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of the hybrid")
    parser.add_argument("--seeds-others", type=int, default=1, help="runs of the plain U-Net")
    parser.add_argument("--seed", type=int, default=0, help="of the first run: weights and order")
    parser.add_argument("--data-seed", type=int, default=0, help="for the samples")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/hybrid"), help="results, checkpoints"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="cache of the samples")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    counts = (
        "samples",
        "held_out",
        "steps",
        "particles",
        "epochs",
        "unroll",
        "seeds",
        "seeds_others",
    )
    check_at_least(parser, options, **dict.fromkeys((*counts, "seeds_others"), 1))
    if options.unroll > options.steps:
        parser.error(f"--unroll must be at most --steps {options.steps}, got {options.unroll}")
    parts = 2 ** len(options.features)
    if options.size < parts or options.size % parts:
        parser.error(f"--size must be a multiple of {parts}, got {options.size}")
    return options
