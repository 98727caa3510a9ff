"""Train U-Nets to predict drifting density for three days, and score them.

`python -m neurenix_ms.recipes.ocean` simulates particles that drift in four kinds of currents, trains
U-Nets to predict their density six hours later, rolls each out for twelve steps on unseen samples, and
writes tables, figures and an animation. An interrupted run resumes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.conservation import Conserve
from neurenix_ms.layers.blocks import BlockKind
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.ocean.maps import animate, draw_maps
from neurenix_ms.recipes.ocean.models import DriftUNet, carry, stay
from neurenix_ms.recipes.ocean.options import noted, parsed
from neurenix_ms.recipes.ocean.report import (
    draw_errors,
    draw_intensity,
    error_table,
    intensity_table,
)
from neurenix_ms.recipes.ocean.rollouts import HELD_OUT_SEED, Step, samples_of, scored, stacked
from neurenix_ms.recipes.ocean.scores import noise_of
from neurenix_ms.recipes.ocean.seas import draw_seas
from neurenix_ms.recipes.ocean.training import Sample, maps_of, train

SINK = 0.4  # km/h
KINDS: dict[str, dict[str, Any]] = {
    "eddies": {},
    "reversed": {"time_reversed": True},
    "sink": {"sink": SINK},
    "source": {"sink": SINK, "time_reversed": True},
}
MASS_WEIGHT = 0.02  # so that its gradient does not dominate that of the squared error
Samples = list[Sample]


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
    options = parsed(
        argv,
        "ocean",
        "Train U-Nets to predict a density in a sea of eddies, and score them.",
        samples=48,
        epochs=20,
        unroll=1,
        seeds=2,
        seeds_others=2,
    )
    torch.set_num_threads(1)  # the networks are small
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options)
    unseen = {kind: stacked(data.unseen(kind), maps_of) for kind in KINDS}
    result: dict[str, Any] = {"options": noted(options), "kinds": {}, "ways": {}}
    for kind, (density, _) in unseen.items():
        result["kinds"][kind] = noise_of(density, options.particles)
    shown: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, (step, conserve) in WITHOUT.items():
        result["ways"][name] = {"runs": [scored(step, unseen, shown, name, conserve)]}
    for turn in range(max(options.seeds, options.seeds_others)):
        first, seed = turn == 0, options.seed + turn
        for name, case in CASES.items():
            if turn >= (options.seeds if case.data == "eddies" else options.seeds_others):
                continue
            print(f"{name}, seed {seed}", flush=True)
            model, wall, cpu = _trained(name, case, seed, data, options)
            run = scored(model, unseen, shown if first else {}, name)
            way = result["ways"].setdefault(
                name, {"case": asdict(case), "parameters": _count(model), "runs": []}
            )
            way["runs"].append(run | {"wall": wall, "cpu": cpu})
            if case == Case():
                after = f"{name}, corrected"
                run = scored(model, unseen, shown if first else {}, after, "scale")
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
    draw_seas(options.out / "ocean_data.png", options.cache)
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
        samples = samples_of(KINDS[kind], count, seed, self.options)
        if (took := time.process_time() - start) > 1:  # less is the time of reading
            self.seconds += took
            write_atomically(self.note, json.dumps({"seconds": self.seconds}).encode())
        return samples


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
    forget_other_run(folder, {**noted(options, training=True), "case": asdict(case)}, options.fresh)
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
