"""Compare multirate forecasts of chaotic fields with those of a single-rate network.

`python -m neurenix_ms.recipes.multirate` trains all models for two systems and several seeds, and writes
a table of errors and horizons on unseen trajectories, and a figure. Finished runs are stored, so an
interrupted command resumes with the next one. With a file in `--data`, the system is a field of your
own on a ring.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch

from neurenix_ms.recipes.multirate.report import draw, summary, table
from neurenix_ms.recipes.multirate.scores import Result, horizon, measured
from neurenix_ms.recipes.multirate.settings import (
    SYSTEMS,
    VARIANTS,
    Parts,
    Settings,
    build,
    own_field,
)
from neurenix_ms.recipes.runs import finished, parsed, parser_of, write_results
from neurenix_ms.timestepping import fit_rollouts

HORIZON, HISTORY = 8, 8  # steps of a rollout, and at most of those before it
KEPT = ("seed", "iterations", "parameters", "seconds", "errors", "correlations")


def main(argv: Sequence[str] | None = None) -> str:
    """Run the comparison and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    parser = parser_of(
        "multirate",
        "Compare multirate forecasts with those of a single-rate network.",
        list(SYSTEMS),
        "a field of your own on a ring (N, T, S) or (T, S), the last ones unseen",
    )
    parser.add_argument("--model", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options, systems = parsed(parser, argv, SYSTEMS, own_field)
    results: dict[str, dict[str, list[Result]]] = {}
    data = {name: cache(partial(one.data, options.data)) for name, one in systems.items()}
    for seed in options.seeds:
        for system, settings in systems.items():
            for variant in options.model:
                iterations = options.iterations or settings.iterations
                note = options.runs / f"{system}_{variant}_{seed}.json"
                new = partial(run, settings, variant, data[system], seed, iterations)
                one = finished(note, iterations, options.fresh, new)
                results.setdefault(system, {}).setdefault(variant, []).append(one)
    text = table(results, systems)
    figures = {
        system: {
            variant: [summary(systems[system], one) for one in some]
            for variant, some in runs.items()
        }
        for system, runs in results.items()
    }
    draw(options.out / "multirate.png", results, systems)
    write_results(options.out, "multirate", figures, text)
    return text


def run(
    settings: Settings, variant: str, load: Callable[[], Parts], seed: int, iterations: int
) -> Result:
    """Train and measure one model.

    Args:
        settings: Settings of the system.
        variant: Name of the model.
        load: Function that returns the trajectories of the system.
        seed: Seed of weights and windows.
        iterations: Steps of Adam.
    """
    data = load()
    torch.manual_seed(seed)
    model = build(VARIANTS[variant], settings)
    start = time.process_time()
    fit_rollouts(
        model,
        data["train"],
        validation=data["validation"],
        horizon=HORIZON,
        history=HISTORY,
        num_iterations=iterations,
        seed=seed,
    )
    seconds = time.process_time() - start
    result = measured(model, data["test"]) | {
        "seed": seed,
        "iterations": iterations,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds),
    }
    steps = horizon(result["correlations"])
    print(f"{settings.title}, {variant}, seed {seed}: horizon {steps} steps, {seconds:.0f} s")
    return {key: result[key] for key in KEPT}
