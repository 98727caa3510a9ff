"""Train an MSNet to predict conduction through 3-D porous media, and score it.

`python -m neurenix_ms.recipes.msnet` computes porous geometries of six kinds with solved conduction,
trains an MSNet on boxes of 32 cells per axis, and scores it on unseen boxes of that size and of
twice that size, together with a fitted Archie law, Bruggeman's law and the linear field. It writes
`msnet.png` and `table.md`. An interrupted run resumes. With a file in `--data`, the boxes are those of
your own rock; its last planes are held out.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets import PorousConduction, ScannedConduction
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.planes import Planes
from neurenix_ms.meter import count_flops, parameter_table
from neurenix_ms.recipes.demo.report import ArchieLaw, pick, table
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.msnet.models import ConductionMSNet, network_inputs, potential_of
from neurenix_ms.recipes.msnet.report import draw, scores
from neurenix_ms.recipes.msnet.training import (
    CONDUCTANCE_WEIGHT,
    FLUX_WEIGHT,
    ConductionLoss,
    train,
)
from neurenix_ms.recipes.options import add_data, check_at_least, own_array, readable

KINDS = [(name, radius) for name in ("blobs", "overlapping_spheres") for radius in (4, 6, 8)]
HELD_OUT_PART = 0.2  # of the planes of a scan
HELD_OUT_SEED = 1  # added to that of the training samples
PARTS = ("level", "flux", "conductance", "mirrors")
Samples = list[dict[str, Tensor]]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options, scan, reading = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options) if scan is None else Boxes(options, scan)
    with reading():
        seen = data.samples(options.samples, options.size, options.seed)
        unseen = [
            data.samples(count, size, options.seed + HELD_OUT_SEED)
            for count, size in (
                (options.held_out, options.size),
                (options.larger, 2 * options.size),
            )
        ]
    model, wall, cpu = _trained(options, seen, data.facts)
    laws = _laws(seen)
    columns: dict[str, dict[str, str]] = {}
    for samples in unseen:
        held_out = {key: torch.stack([one[key] for one in samples]) for key in samples[0]}
        for name, rows in scores(predict(model, held_out), held_out, *laws).items():
            columns.setdefault(name, {}).update(rows)
    columns["MS-Net"] |= {
        "parameters": f"{parameter_table(model)[-1][1]:,}",
        f"FLOPs, {options.size}³": f"{_flops(model, options.size) / 1e9:.2f} G",
        "generating samples, CPU time": f"{data.seconds:.0f} s",
        "training, wall time": f"{wall:.0f} s",
        "training, CPU time": f"{cpu:.0f} s",
        "samples omitted, not converged": str(data.left_out),
    }
    text = table(columns)
    facts = data.title + (
        f"Unseen geometries: {len(unseen[0])} of {options.size}³ and {len(unseen[1])} of "
        f"{2 * options.size}³ cells. Trained on {len(seen)} others of {options.size}³; "
        f"epochs: {options.epochs}, threads: {torch.get_num_threads()}."
    )
    write_atomically(options.out / "table.md", f"{text}\n\n{facts}\n".encode())
    shown = [_middle(samples) for samples in unseen]
    draw(options.out / "msnet.png", shown, [_deviations(model, _batch(one)) for one in shown])
    print(f"\n{text}\n\n{facts}\n{options.out / 'msnet.png'}, {options.out / 'table.md'}")
    return text


def predict(model: ConductionMSNet, samples: dict[str, Tensor]) -> Tensor:
    """Predict the potential of stacked samples, one by one."""
    ones = zip(samples["pores"].split(1), samples["distance"].split(1), strict=True)
    pairs = [{"pores": pores, "distance": distance} for pores, distance in ones]
    return torch.cat([potential_of(_deviations(model, one)[-1], one["pores"]) for one in pairs])


class Data:
    """Samples of all kinds, and the CPU time of computing them, including that of interrupted runs.

    Args:
        options: The command line.
    """

    title = ""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root = options.data
        self.note = options.out / "data.json"
        self.facts: dict[str, Any] = {}
        made = json.loads(self.note.read_text()) if self.note.exists() else {}
        self.seconds: float = made.get("seconds", 0.0)
        self.left_out: int = made.get("left_out", 0)

    def samples(self, count: int, size: int, seed: int) -> Samples:
        """Return `count` samples, alternating between the kinds."""
        each = [self._of_kind(*kind, -(-count // len(KINDS)), size, seed) for kind in KINDS]
        return [each[i % len(KINDS)][i // len(KINDS)] for i in range(count)]

    def _of_kind(self, generator: Any, radius: int, count: int, size: int, seed: int) -> Samples:
        def make() -> PorousConduction:
            return PorousConduction(
                self.root, count, size, 3, generator, seed=seed, grain_radius=radius
            )

        made = self._timed(make)
        return [made[i] for i in range(count)]

    def _timed(self, make: Callable[[], Any]) -> Any:
        """Return a dataset that is computed here, and note the CPU time and what was left out."""
        start = time.process_time()  # the solver runs in this process
        with warnings.catch_warnings(record=True) as reports:
            warnings.simplefilter("always")
            made = make()
        left_out = [one for one in reports if "is omitted" in str(one.message)]
        for one in left_out:
            print(one.message)
        if (took := time.process_time() - start) > 1 or left_out:  # less is the time of reading
            self.seconds += took
            self.left_out += len(left_out)
            note = {"seconds": self.seconds, "left_out": self.left_out}
            write_atomically(self.note, json.dumps(note).encode())
        return made


class Boxes(Data):
    """Boxes of a scan, those of its last planes unseen; see `Data`.

    Args:
        options: The command line.
        scan: The scan.

    Raises:
        ValueError: If the scan is too small.
    """

    def __init__(self, options: argparse.Namespace, scan: DiskArray) -> None:
        super().__init__(options)
        self.root = options.out / "boxes"
        self.pores, self.held_out_seed = options.pore_values, options.seed + HELD_OUT_SEED
        planes = scan.shape[0]
        kept = max(2 * options.size, round(HELD_OUT_PART * planes))
        self.parts = Planes(scan, 0, planes - kept), Planes(scan, planes - kept, planes)
        self.title = f"Boxes of {scan.path.name}; its last {kept} of {planes} planes are unseen. "

    def samples(self, count: int, size: int, seed: int) -> Samples:
        """Return boxes of the planes to train on, or with the seed of unseen ones of the last planes."""
        part = self.parts[seed == self.held_out_seed]
        made = self._timed(
            lambda: ScannedConduction(self.root, part, count, size, self.pores, seed=seed)
        )
        self.facts.setdefault(
            "boxes", made.cache.folder.name
        )  # of those trained on, which come first
        return [made[i] for i in range(count)]


def _trained(
    options: argparse.Namespace, seen: Samples, facts: dict[str, Any]
) -> tuple[ConductionMSNet, float, float]:
    """Train the network, or resume; return it with its wall time and CPU time in seconds."""
    without = set(options.without)
    torch.manual_seed(options.seed)
    level = "level" not in without
    model = ConductionMSNet(options.filters, options.growth, options.scales, level=level)
    model = model.to(memory_format=torch.channels_last_3d)
    names = ("samples", "size", "seed", "epochs", "filters", "growth", "scales")
    run = {**{name: getattr(options, name) for name in names}, "without": sorted(without)}
    run |= facts
    forget_other_run(options.out, run, options.fresh)
    loss = ConductionLoss(
        flux=0.0 if "flux" in without else FLUX_WEIGHT,
        conductance=0.0 if "conductance" in without else CONDUCTANCE_WEIGHT,
    )
    mirrored = "mirrors" not in without
    took = train(
        model, seen, options.epochs, options.out, loss=loss, mirrored=mirrored, seed=options.seed
    )
    return model.eval(), *took


def _laws(seen: Samples) -> tuple[ArchieLaw, ArchieLaw]:
    """Return Archie's law fitted to the training samples, and Bruggeman's law for grains."""
    porosity = torch.stack([one["pores"].mean() for one in seen])
    conductance = torch.stack([one["D_rel"] for one in seen])
    return ArchieLaw.fit(porosity, conductance), ArchieLaw(1.0, 1.5)


def _deviations(model: ConductionMSNet, sample: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return model(network_inputs(sample["pores"], sample["distance"]))


def _batch(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[None] for key, value in sample.items()}


def _middle(samples: Samples) -> dict[str, Tensor]:
    """Return the sample of median conductance."""
    return samples[pick(torch.stack([one["D_rel"] for one in samples]), 1)[0]]


def _flops(model: ConductionMSNet, size: int) -> int:
    x = torch.zeros(1, 3, size, size, size)
    return count_flops(lambda: model(x))


def _options(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, DiskArray | None, Callable[[], AbstractContextManager[None]]]:
    """Return the options, the user's own scan, and a context in which its errors have one line."""
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.msnet",
        description="Train an MSNet on conduction through 3-D porous media, and score it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=1296, help="geometries to train on")
    parser.add_argument("--held-out", type=int, default=96, help="unseen ones of the same size")
    parser.add_argument("--larger", type=int, default=24, help="unseen ones of twice the size")
    parser.add_argument("--size", type=int, default=32, help="cells along each axis")
    parser.add_argument("--epochs", type=int, default=8, help="passes over all geometries")
    parser.add_argument("--filters", type=int, default=4, help="channels of the finest stage")
    parser.add_argument("--growth", type=int, default=2, help="ratio of channels, coarser by finer")
    parser.add_argument("--scales", type=int, default=3, help="number of scales, 1 to 4")
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[], help="parts to omit")
    parser.add_argument("--seed", type=int, default=0, help="for geometries, weights and order")
    parser.add_argument("--out", type=Path, default=Path("runs/msnet"), help="results, checkpoint")
    add_data(parser, "labels of your own rock, of three axes, flow along the first", "samples")
    parser.add_argument(
        "--pore-values", type=int, nargs="+", default=[1], help="labels of the pores in such a file"
    )
    parser.add_argument("--fresh", action="store_true", help="ignore the checkpoint")
    options = parser.parse_args(argv)
    check_at_least(parser, options, samples=2, held_out=2, larger=2, epochs=1)
    if not 1 <= options.scales <= 4:
        parser.error(f"--scales must be between 1 and 4, got {options.scales}")
    if options.size < 16 or options.size % 8:
        parser.error(f"--size must be a multiple of 8 and at least 16, got {options.size}")
    scan = own_array(parser, options)
    if scan is not None:
        least = (3 * options.size, 2 * options.size, 2 * options.size)
        if scan.ndim != 3 or any(n < k for n, k in zip(scan.shape, least, strict=True)):
            parser.error(
                f"--data must have at least {least} voxels for boxes of --size {options.size}, and "
                f"unseen ones of twice the size, got shape {scan.shape} in {scan.path}"
            )
    return options, scan, partial(readable, parser) if scan is not None else nullcontext
