"""Compare a network that is conditioned on a parameter with one that gets it as an input channel.

`python -m neurenix_ms.recipes.conditioned` trains both, and one that does not know the parameter, on
waves of some speeds, and scores them on waves of other speeds. It writes a table and a figure. An
interrupted run resumes with the next network.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.recipes.conditioned.report import draw, table
from neurenix_ms.recipes.conditioned.training import SEEN, UNSEEN, WAYS, Way, error, trained
from neurenix_ms.recipes.options import check_at_least


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    results = [_result(way, seed, options) for seed in dict.fromkeys(options.seeds) for way in WAYS]
    write_atomically(options.out / "conditioned.json", json.dumps(results, indent=1).encode())
    draw(options.out / "conditioned.png", results)
    text = table(results)
    write_atomically(options.out / "table.md", f"{text}\n".encode())
    print(f"\n{text}\n\n{options.out / 'table.md'}")
    return text


def _result(way: Way, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return errors and cost of one network, from an earlier run if there was one."""
    note = options.out / f"{way}_{seed}.json"
    if note.exists() and not options.fresh:
        known: dict[str, Any] = json.loads(note.read_text("utf-8"))
        if known["iterations"] == options.iterations:
            return known
    print(f"{way}, seed {seed}")
    start = time.process_time()
    model = trained(way, options.iterations, seed)
    result = {
        "way": way,
        "seed": seed,
        "iterations": options.iterations,
        "cpu_seconds": round(time.process_time() - start, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seen": [error(model, way, speed) for speed in SEEN],
        "unseen": [error(model, way, speed) for speed in UNSEEN],
    }
    write_atomically(note, json.dumps(result, indent=1).encode())
    return result


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.conditioned",
        description="Train networks on waves of some speeds, and score them on others.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=600, help="steps of Adam")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of weights and batches"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/conditioned"), help="results")
    parser.add_argument("--fresh", action="store_true", help="ignore earlier results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, seeds=0)
    return options
