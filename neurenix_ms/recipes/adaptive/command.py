"""Compare adaptive strides with single and coupled ones, by error and calls of networks.

`python -m neurenix_ms.recipes.adaptive` trains steppers of several strides for two systems and several
seeds, and a network that predicts their errors. It writes a table of errors and calls on unseen
trajectories, and a figure. An interrupted run resumes. With a file in `--data`, the trajectories are
your own.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch

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
from neurenix_ms.recipes.adaptive.settings import SYSTEMS, Parts, Settings, own_system
from neurenix_ms.recipes.options import add_time_step
from neurenix_ms.recipes.runs import finished, parsed, parser_of, write_results
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
    parser = parser_of(
        "adaptive",
        "Compare adaptive strides with single and coupled ones.",
        list(SYSTEMS),
        "your own trajectories (N, T, D) or (T, D), the last ones unseen",
    )
    add_time_step(parser)
    options, systems = parsed(parser, argv, SYSTEMS, own_system)
    results: dict[str, list[Result]] = {}
    for system, settings in systems.items():
        iterations = options.iterations or settings.iterations
        data = cache(partial(settings.data, options.data))
        for seed in options.seeds:
            note = options.runs / f"{system}_{seed}.json"
            new = partial(run, system, settings, data, seed, iterations, options)
            one = finished(note, iterations, options.fresh, new)
            results.setdefault(system, []).append(one)
    text = table(results, systems)
    summary = {
        system: [
            {key: one[key] for key in ("seed", "iterations", "seconds", "rows")} for one in runs
        ]
        for system, runs in results.items()
    }
    draw(options.out / "adaptive.png", results, systems)
    write_results(options.out, "adaptive", summary, text)
    return text


def run(
    system: str,
    settings: Settings,
    load: Callable[[], Parts],
    seed: int,
    iterations: int,
    options: argparse.Namespace,
) -> Result:
    """Train and measure one seed of a system.

    Args:
        system: Name of the files of the system.
        settings: Its settings.
        load: Function that returns its trajectories.
        seed: Seed of weights and windows.
        iterations: Steps of Adam for the steppers.
        options: The command line.
    """
    data = load()
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
    result = compared(hierarchy, list(models.values()), data, settings.unit)
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
