"""Compare adaptive strides with single and coupled ones, by error and calls of networks.

`python -m neurenix_ms.recipes.adaptive` trains steppers of several strides for two systems and several
seeds, and a network that predicts their errors. It writes a table of errors and calls on unseen
trajectories, and a figure. An interrupted run resumes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.files import save
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.recipes.adaptive.report import draw, table
from neurenix_ms.recipes.adaptive.scores import (
    Result,
    compared,
    example,
    longest,
    with_tolerances,
)
from neurenix_ms.recipes.adaptive.settings import SYSTEMS, Parts, Settings
from neurenix_ms.recipes.options import check_at_least
from neurenix_ms.timestepping import (
    AdaptiveTimeStepper,
    HierarchicalTimeStepper,
    fit_adaptive,
    fit_hierarchy,
)


def main(argv: Sequence[str] | None = None) -> str:
    """Run the comparison and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    options.runs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Result]] = {}
    for system in options.system:
        settings = SYSTEMS[system]
        iterations = options.iterations or settings.iterations
        data: Parts | None = None
        for seed in options.seeds:
            note = options.runs / f"{system}_{seed}.json"
            if options.fresh or not note.exists() or not _is_from(note, iterations):
                data = settings.data(options.data) if data is None else data
                result = run(system, data, seed, iterations, options)
                write_atomically(note, json.dumps(result).encode())
            results.setdefault(system, []).append(json.loads(note.read_text(encoding="utf-8")))
    text = table(results)
    summary = {
        system: [
            {key: one[key] for key in ("seed", "iterations", "seconds", "rows")} for one in runs
        ]
        for system, runs in results.items()
    }
    write_atomically(options.out / "adaptive.json", json.dumps(summary, indent=1).encode())
    write_atomically(options.out / "adaptive.md", f"{text}\n".encode())
    draw(options.out / "adaptive.png", results)
    print(f"\n{text}\n\n{options.out / 'adaptive'}.json, .md, .png")
    return text


def run(
    system: str, data: Parts, seed: int, iterations: int, options: argparse.Namespace
) -> Result:
    """Train and measure one seed of a system."""
    settings = SYSTEMS[system]
    print(f"{settings.title}, seed {seed}")
    if options.fresh:
        for old in options.runs.glob(f"{system}_{seed}.*"):
            old.unlink()
    start = time.process_time()
    hierarchy = trained(system, settings, data, seed, iterations, options)
    # the longest stride of the best coupled forecast, or the next one where a tolerance permits it
    size = longest(hierarchy, data)
    models = {
        last: with_errors(settings, hierarchy, last, data, seed, iterations)
        for last in sorted({size, min(2 * size, max(settings.step_sizes))})
    }
    seconds = time.process_time() - start
    result = compared(hierarchy, list(models.values()), data)
    tolerance, interpolation, last = result["ways"][result["chosen"]["adaptive"]]["label"]
    model = with_tolerances(models[last], tolerance, interpolation)
    save(model, options.runs / f"{system}_{seed}.nx")
    return result | {
        "seed": seed,
        "iterations": iterations,
        "seconds": round(seconds),
        "rows": {name: result["ways"][i] for name, i in result["chosen"].items()},
        "example": example(model, data),
        "dt": settings.dt,
    }


def trained(
    system: str,
    settings: Settings,
    data: Parts,
    seed: int,
    iterations: int,
    options: argparse.Namespace,
) -> HierarchicalTimeStepper:
    """Train the steppers, or resume from their checkpoint."""
    features = data["train"].shape[-1]
    torch.manual_seed(seed)
    return fit_hierarchy(
        data["train"],
        settings.dt,
        settings.step_sizes,
        lambda: MLP(features, features, settings.hidden, act="silu"),
        validation=data["validation"],
        horizon=1,
        num_iterations=iterations,
        batch_size=settings.batch_size,
        learning_rate=2e-3,
        seed=seed,
        checkpoint=options.runs / f"{system}_{seed}.ckpt",
    )


def with_errors(
    settings: Settings,
    hierarchy: HierarchicalTimeStepper,
    last: int,
    data: Parts,
    seed: int,
    iterations: int,
) -> AdaptiveTimeStepper:
    """Train the network that predicts the errors of the steppers with strides up to `last`."""
    some = hierarchy.only([stride for stride in hierarchy.step_sizes if stride <= last])
    features, count = data["train"].shape[-1], len(some.steppers)
    torch.manual_seed(seed)
    return fit_adaptive(
        some,
        data["train"],
        lambda: MLP(features, 2 * count, settings.hidden_errors, act="silu"),
        tolerance=0.01,
        num_iterations=min(iterations, settings.iterations_errors),
        seed=seed,
    )


def _is_from(note: Path, iterations: int) -> bool:
    return bool(json.loads(note.read_text(encoding="utf-8"))["iterations"] == iterations)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.adaptive",
        description="Compare adaptive strides with single and coupled ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--system", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--iterations", type=int, help="steps of Adam; by default by system")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="for everything")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive"), help="results")
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptive"), help="checkpoints")
    parser.add_argument("--data", type=Path, default=Path("data"), help="cache of trajectories")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints and results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, seeds=0)
    torch.set_num_threads(1)  # the networks are small
    return options
