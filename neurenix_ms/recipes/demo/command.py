"""Compare a multiscale and a single-scale network on porous media.

`python -m neurenix_ms.recipes.demo` computes porous geometries with solved conduction, trains a network
composed of the library's blocks and a plain stack of convolutions with as many parameters on the same
batches, and compares both, Archie's law and the linear field on unseen geometries. It writes
`demo.png` and `table.md`. An interrupted run resumes. With a file in `--data`, the geometries are boxes
of an image of your own; its last rows are held out.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets import PorousConduction, ScannedConduction, effective_conductivity
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.meter import count_flops, parameter_table, peak_tensor_bytes
from neurenix_ms.recipes.demo.models import (
    linear_field,
    multiscale,
    network_inputs,
    single_scale,
)
from neurenix_ms.recipes.demo.report import (
    ArchieLaw,
    conductance_scores,
    draw,
    field_scores,
    pick,
    table,
)
from neurenix_ms.recipes.demo.training import (
    BATCH_SIZE,
    LEARNING_RATE,
    MirroredConduction,
    conduction_loss,
    train,
)
from neurenix_ms.recipes.fitting import forget_other_run
from neurenix_ms.recipes.options import check_at_least, readable
from neurenix_ms.recipes.scans import add_scan, own_scan, parts_of

MODELS = {"multiscale": multiscale, "single scale": single_scale}
HELD_OUT = 6  # one of so many samples is held out for the comparison
HELD_OUT_SEED = 1  # added to that of the training boxes
Samples = list[dict[str, Tensor]]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the demo and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    start = time.perf_counter()
    options, scan, reading = _options(argv)
    with reading():
        seen, unseen, title, facts = _samples(options, scan)
    models, seconds = _trained(options, seen, facts)
    held_out = {key: torch.stack([one[key] for one in unseen]) for key in unseen[0]}
    inputs = network_inputs(held_out["pores"], held_out["distance"])
    fields = {name: predict(model, inputs) for name, model in models.items()}
    columns = {
        name: {**field_scores(fields[name], held_out["potential"], held_out["pores"])}
        | costs(model, seen[:BATCH_SIZE], seconds[name])
        for name, model in models.items()
    }
    columns |= _baselines(seen, held_out)
    text = table(columns)
    said = title + (
        f"{len(unseen)} unseen geometries of {options.size} x {options.size} cells; both networks "
        f"were trained on the same {len(seen)} others, with the same loss, in the same "
        f"{options.epochs} epochs of {-(-len(seen) // BATCH_SIZE)} steps."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "table.md", f"{text}\n\n{said}\n".encode())
    shown = pick(effective_conductivity(held_out["potential"], held_out["pores"]))
    draw(
        options.out / "demo.png",
        held_out["pores"][shown],
        held_out["potential"][shown],
        {name: field[shown] for name, field in fields.items()},
    )
    print(f"\n{text}\n\n{said}")
    print(f"{options.out / 'demo.png'}, {options.out / 'table.md'}: ", end="")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return text


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the output of `model` in evaluation mode, computed batch by batch."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch) for batch in inputs.split(BATCH_SIZE)])


def costs(model: nn.Module, samples: Sequence[dict[str, Tensor]], seconds: float) -> dict[str, str]:
    """Return the rows of the table with the costs of a network.

    Args:
        model: The network.
        samples: The batch of a training step.
        seconds: Wall time of its training.
    """
    inputs, targets = map(torch.stack, zip(*_mapped(samples), strict=True))

    def forward() -> None:
        with torch.no_grad():
            model(inputs[:1])

    def step() -> None:
        conduction_loss(model(inputs), targets).backward()

    model = copy.deepcopy(model).eval()  # a step changes gradients and batch norm statistics
    model.zero_grad(set_to_none=True)
    operations, forward_bytes = count_flops(forward), peak_tensor_bytes(forward)
    model.train()
    step_bytes = peak_tensor_bytes(step)
    return {
        "parameters": f"{parameter_table(model)[-1][1]:,}",
        "FLOPs, one image": f"{operations / 1e9:.3f} G",
        "peak memory of tensors, one image": f"{forward_bytes / 2**20:.1f} MiB",
        f"peak memory, training step with batch {len(inputs)}": f"{step_bytes / 2**20:.1f} MiB",
        "training time": f"{seconds:.0f} s",
    }


def _mapped(samples: Sequence[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    data = MirroredConduction(samples)
    return [data[i] for i in range(len(samples))]


def _baselines(
    seen: Sequence[dict[str, Tensor]], held_out: dict[str, Tensor]
) -> dict[str, dict[str, str]]:
    """Return the columns of Archie's law, fitted to the training samples, and of the linear field."""
    porosity = torch.stack([one["pores"].mean() for one in seen])
    conductance = torch.stack([one["D_rel"] for one in seen])
    unseen = held_out["pores"].flatten(1).mean(dim=1)
    columns = {}
    for with_scale in (True, False):
        law = ArchieLaw.fit(porosity, conductance, with_scale=with_scale)
        factor = f"{law.scale:.2f} " if with_scale else ""
        name = f"Archie {factor}φ^{law.exponent:.2f}"
        columns[name] = conductance_scores(law(unseen), held_out["D_rel"])
    truth = held_out["potential"]
    linear = linear_field(tuple(truth.shape[2:])).expand_as(truth)
    return columns | {"linear field": field_scores(linear, truth, held_out["pores"])}


def _samples(
    options: argparse.Namespace, scan: DiskArray | None
) -> tuple[Samples, Samples, str, dict[str, Any]]:
    """Return samples to train on and unseen ones, what is said of them, and what identifies them."""
    num_held_out = max(2, options.samples // HELD_OUT)
    if scan is None:
        data = PorousConduction(
            options.data, options.samples, size=options.size, spatial_dims=2, seed=options.seed
        )
        samples = _listed(data)
        return samples[:-num_held_out], samples[-num_held_out:], "", {}
    parts, title = parts_of(scan, options.size)
    counts = options.samples - num_held_out, num_held_out
    seeds = options.seed, options.seed + HELD_OUT_SEED
    seen, unseen = (
        ScannedConduction(
            options.out / "boxes", part, count, options.size, options.pore_values, seed=seed
        )
        for part, count, seed in zip(parts, counts, seeds, strict=True)
    )
    facts = {"boxes": seen.cache.folder.name}
    return _listed(seen), _listed(unseen), title, facts


def _listed(data: PorousConduction | ScannedConduction) -> Samples:
    return [data[i] for i in range(len(data))]


def _trained(
    options: argparse.Namespace, seen: Samples, facts: dict[str, Any]
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Train both networks, or resume from `options.out`; return them and their wall times."""
    models: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for name, make in MODELS.items():
        torch.manual_seed(options.seed)
        model = make().to(memory_format=torch.channels_last)
        folder = options.out / name.replace(" ", "_")
        forget_other_run(
            folder,
            {
                **{key: getattr(options, key) for key in ("samples", "epochs", "size", "seed")},
                "batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "parameters": parameter_table(model)[-1][1],
                **facts,
            },
            options.fresh,
        )
        print(f"training the {name} network, {parameter_table(model)[-1][1]:,} parameters")
        seconds[name] = train(model, seen, options.epochs, folder, seed=options.seed)
        models[name] = model
    return models, seconds


def _options(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, DiskArray | None, Callable[[], AbstractContextManager[None]]]:
    """Return the options, the user's own image, and a context in which its errors have one line."""
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.demo",
        description="Train a multiscale and a single-scale network on porous media and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=600, help="geometries, including held-out")
    parser.add_argument("--epochs", type=int, default=12, help="passes over all geometries")
    parser.add_argument("--size", type=int, default=64, help="cells along each axis")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of geometries, weights and order"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of results and checkpoints"
    )
    add_scan(parser, "labels of an image of your own porous medium, flow along the first axis")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")
    options = parser.parse_args(argv)
    check_at_least(parser, options, samples=4, size=16, epochs=1)
    why = f"for boxes of --size {options.size}, and unseen ones"
    scan = own_scan(parser, options, (2 * options.size, options.size), why)
    return options, scan, partial(readable, parser) if scan is not None else nullcontext
