"""Compare multirate forecasts of chaotic fields with those of a single-rate network.

`python -m neurenix_ms.recipes.multirate` trains all models for two systems and several seeds, and writes
a table of errors and horizons on unseen trajectories, and a figure. Finished runs are stored, so an
interrupted command resumes with the next one.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.recipes.multirate.report import draw, summary, table
from neurenix_ms.recipes.multirate.scores import Result, horizon, measured
from neurenix_ms.recipes.multirate.settings import SYSTEMS, VARIANTS, Parts, build
from neurenix_ms.recipes.options import check_at_least
from neurenix_ms.timestepping import fit_rollouts

HORIZON, HISTORY = 8, 8  # steps of a rollout, and at most of those before it
KEPT = ("seed", "iterations", "parameters", "seconds", "errors", "correlations")


def main(argv: Sequence[str] | None = None) -> str:
    """Run the comparison and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    options.runs.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[Result]]] = {}
    data: dict[str, Parts] = {}
    for seed in options.seeds:
        for system in options.system:
            for variant in options.model:
                iterations = options.iterations or SYSTEMS[system].iterations
                note = options.runs / f"{system}_{variant}_{seed}.json"
                if options.fresh or not note.exists() or not _is_from(note, iterations):
                    if system not in data:
                        data[system] = SYSTEMS[system].data(options.data)
                    result = run(system, variant, data[system], seed, iterations)
                    write_atomically(note, json.dumps(result).encode())
                one = json.loads(note.read_text(encoding="utf-8"))
                results.setdefault(system, {}).setdefault(variant, []).append(one)
    text = table(results)
    figures = {
        system: {variant: [summary(system, one) for one in some] for variant, some in runs.items()}
        for system, runs in results.items()
    }
    write_atomically(options.out / "multirate.json", json.dumps(figures, indent=1).encode())
    write_atomically(options.out / "multirate.md", f"{text}\n".encode())
    draw(options.out / "multirate.png", results)
    print(f"\n{text}\n\n{options.out / 'multirate'}.json, .md, .png")
    return text


def run(system: str, variant: str, data: Parts, seed: int, iterations: int) -> Result:
    """Train and measure one model."""
    settings = SYSTEMS[system]
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


def _is_from(note: Path, iterations: int) -> bool:
    return bool(json.loads(note.read_text(encoding="utf-8"))["iterations"] == iterations)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.multirate",
        description="Compare multirate forecasts with those of a single-rate network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--system", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--model", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--iterations", type=int, help="steps of Adam; by default by system")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each")
    parser.add_argument("--out", type=Path, default=Path("runs/multirate"), help="results")
    parser.add_argument("--runs", type=Path, default=Path("runs/multirate"), help="finished runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="cache of trajectories")
    parser.add_argument("--fresh", action="store_true", help="ignore finished runs")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, seeds=0)
    torch.set_num_threads(1)  # the networks are small
    return options
