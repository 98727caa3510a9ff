"""Train U-Nets to predict drifting density for three days, and score them.

`python -m neurenix_ms.recipes.ocean` simulates particles that drift in four kinds of currents, trains
U-Nets to predict their density six hours later, rolls each out for twelve steps on unseen samples, and
writes tables, figures and an animation. An interrupted run resumes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.conservation import Conserve, rollout
from neurenix_ms.datasets import DriftDensity
from neurenix_ms.layers.blocks import BlockKind
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.ocean.maps import animate, draw_maps
from neurenix_ms.recipes.ocean.models import DriftUNet, carry, stay
from neurenix_ms.recipes.ocean.report import (
    draw_errors,
    draw_intensity,
    error_table,
    intensity_table,
)
from neurenix_ms.recipes.ocean.scores import noise_of, scores
from neurenix_ms.recipes.ocean.seas import draw_seas
from neurenix_ms.recipes.ocean.training import maps_of, train
from neurenix_ms.recipes.options import check_at_least

SINK = 0.4  # km/h
KINDS: dict[str, dict[str, Any]] = {
    "eddies": {},
    "reversed": {"time_reversed": True},
    "sink": {"sink": SINK},
    "source": {"sink": SINK, "time_reversed": True},
}
HELD_OUT_SEED = 1000  # added to that of the training samples
MASS_WEIGHT = 0.02  # so that its gradient does not dominate that of the squared error
Samples = list[dict[str, Tensor]]
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Options of a network and its training data.

    Args:
        data: One of `KINDS`, or "all" for all of them with as many samples in total.
        block: "double" or "single".
        conserve: Scale every prediction to the mass of its input.
        mass: Weight of the mass error in the loss.
        residual: Predict the change.
    """

    data: str = "eddies"
    block: BlockKind = "double"
    conserve: bool = False
    mass: float = 0.0
    residual: bool = False


CASES = {
    "double": Case(),
    "single": Case(block="single"),
    "double, mass kept": Case(conserve=True),
    "double, mass in the loss": Case(mass=MASS_WEIGHT),
    "double, residual": Case(residual=True),
    "double, seen sink": Case("sink"),
    "double, seen all": Case("all"),
    "double, mass kept, seen all": Case("all", conserve=True),
}
WITHOUT: dict[str, tuple[Step, Conserve]] = {
    "nothing moves": (stay, None),
    "semi-Lagrangian": (carry, None),
    "semi-Lagrangian, corrected": (carry, "scale"),
}


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its tables.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    torch.set_num_threads(1)  # the networks are small
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options)
    unseen = {kind: stacked(data.unseen(kind)) for kind in KINDS}
    result: dict[str, Any] = {"options": _noted(options), "kinds": {}, "ways": {}}
    for kind, (density, _) in unseen.items():
        result["kinds"][kind] = noise_of(density, options.particles)
    shown: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, (step, conserve) in WITHOUT.items():
        result["ways"][name] = {"runs": [_tested(step, unseen, conserve, shown, name)]}
    for turn in range(max(options.seeds, options.seeds_others)):
        first, seed = turn == 0, options.seed + turn
        for name, case in CASES.items():
            if turn >= (options.seeds if case.data == "eddies" else options.seeds_others):
                continue
            print(f"{name}, seed {seed}", flush=True)
            model, wall, cpu = _trained(name, case, seed, data, options)
            run = _tested(model, unseen, None, shown if first else {}, name)
            way = result["ways"].setdefault(
                name, {"case": asdict(case), "parameters": _count(model), "runs": []}
            )
            way["runs"].append(run | {"wall": wall, "cpu": cpu})
            if case == Case():
                after = f"{name}, corrected"
                run = _tested(model, unseen, "scale", shown if first else {}, after)
                way = {"parameters": _count(model), "runs": []}
                result["ways"].setdefault(after, way)["runs"].append(run)
    result["data seconds"] = data.seconds
    write_atomically(options.out / "ocean.json", (json.dumps(result) + "\n").encode())
    table, intensity = error_table(result), intensity_table(result)
    write_atomically(options.out / "ocean.md", (table + "\n").encode())
    write_atomically(options.out / "ocean_intensity.md", (intensity + "\n").encode())
    truth = {kind: density for kind, (density, _) in unseen.items()}
    draw_errors(options.out / "ocean_errors.png", result)
    draw_intensity(options.out / "ocean_intensity.png", result)
    draw_maps(options.out / "ocean.png", truth, shown)
    animate(options.out / "ocean.gif", truth, shown)
    draw_seas(options.out / "ocean_data.png", options.data)
    text = f"{table}\n\n{intensity}"
    print(f"\n{text}\n\n{options.out / 'ocean'}.json, .md, .png, .gif and more")
    return text


class Data:
    """Samples of all kinds, and the CPU time of computing them, including that of interrupted runs.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.note = options.out / "data.json"
        made = json.loads(self.note.read_text()) if self.note.exists() else {}
        self.seconds: float = made.get("seconds", 0.0)

    def seen(self, name: str) -> Samples:
        """Return the training samples of one kind or of all."""
        count, seed = self.options.samples, self.options.data_seed
        if name != "all":
            return self._of_kind(name, count, seed)
        share = -(-count // len(KINDS))
        return [one for kind in KINDS for one in self._of_kind(kind, share, seed)][:count]

    def unseen(self, kind: str) -> Samples:
        """Return the test samples of one kind."""
        return self._of_kind(kind, self.options.held_out, self.options.data_seed + HELD_OUT_SEED)

    def _of_kind(self, kind: str, count: int, seed: int) -> Samples:
        start = time.process_time()  # the simulation runs in this process
        options = self.options
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
        if (took := time.process_time() - start) > 1:  # less is the time of reading
            self.seconds += took
            write_atomically(self.note, json.dumps({"seconds": self.seconds}).encode())
        return [made[i] for i in range(count)]


def stacked(samples: Samples) -> tuple[Tensor, Tensor]:
    """Stack the network's densities `(B, T + 1, N, N)` and velocities `(B, T, 2, N, N)` of samples."""
    density, velocity = zip(*map(maps_of, samples), strict=True)
    return torch.stack(density), torch.stack(velocity)


@torch.no_grad()
def _tested(
    step: Step,
    unseen: dict[str, tuple[Tensor, Tensor]],
    conserve: Conserve,
    shown: dict[str, dict[str, Tensor]],
    name: str,
) -> dict[str, Any]:
    """Return the scores of a method on all kinds; store the first sample's prediction in `shown`."""
    run: dict[str, Any] = {}
    for kind, (density, velocity) in unseen.items():
        predicted = rollout(step, density[:, :1], velocity, velocity.shape[1], conserve)
        run[kind] = scores(predicted, density[:, 1:])
        if kind in shown:
            shown[kind][name] = predicted[0]
    return run


def _trained(
    name: str, case: Case, seed: int, data: Data, options: argparse.Namespace
) -> tuple[DriftUNet, float, float]:
    """Train the network, or resume; return it with its wall time and CPU time in seconds."""
    torch.manual_seed(seed)
    model = DriftUNet(
        case.block,
        conserve=case.conserve,
        residual=case.residual,
        features=tuple(options.features),
    )
    folder = options.out / "runs" / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    tests_only = ("seed", "seeds", "seeds_others", "held_out")
    run = {name: value for name, value in _noted(options).items() if name not in tests_only}
    forget_other_run(folder, {**run, "case": asdict(case)}, options.fresh)
    took = train(
        model,
        data.seen(case.data),
        options.epochs,
        folder,
        mass=case.mass,
        unroll=options.unroll,
        seed=seed,
        progress=not options.quiet,
    )
    return model.eval(), *took


def _count(model: DriftUNet) -> int:
    return parameter_table(model)[-1][1]


def _noted(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a result depends on."""
    without_effect = ("out", "data", "fresh", "quiet")
    return {name: value for name, value in vars(options).items() if name not in without_effect}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.ocean",
        description="Train U-Nets to predict a density in a sea of eddies, and score them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=48, help="samples to train on")
    parser.add_argument("--held-out", type=int, default=16, help="unseen samples of each kind")
    parser.add_argument("--size", type=int, default=64, help="cells along each axis")
    parser.add_argument("--steps", type=int, default=12, help="steps of six hours")
    parser.add_argument("--particles", type=int, default=10_000, help="particles of a sample")
    parser.add_argument("--epochs", type=int, default=20, help="passes over all windows")
    parser.add_argument("--unroll", type=int, default=1, help="steps per training window")
    parser.add_argument(
        "--features", type=int, nargs="+", default=[8, 16, 32], help="channels, fine to coarse"
    )
    parser.add_argument(
        "--seeds", type=int, default=2, help="runs of each network trained on eddies only"
    )
    parser.add_argument("--seeds-others", type=int, default=2, help="runs of all other networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first run: weights and order")
    parser.add_argument("--data-seed", type=int, default=0, help="for the samples")
    parser.add_argument("--out", type=Path, default=Path("runs/ocean"), help="results, checkpoints")
    parser.add_argument("--data", type=Path, default=Path("data"), help="cache of the samples")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    counts = ("samples", "held_out", "steps", "particles", "epochs", "unroll", "seeds")
    check_at_least(parser, options, **dict.fromkeys((*counts, "seeds_others"), 1))
    if options.unroll > options.steps:
        parser.error(f"--unroll must be at most --steps {options.steps}, got {options.unroll}")
    parts = 2 ** len(options.features)
    if options.size < parts or options.size % parts:
        parser.error(f"--size must be a multiple of {parts}, got {options.size}")
    return options
