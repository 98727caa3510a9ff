"""Command line of experiments with drifting density."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurenix_ms.recipes.options import add_cache, check_at_least

WITHOUT_EFFECT = ("out", "cache", "fresh", "quiet")
TESTS_ONLY = ("seed", "seeds", "seeds_others", "held_out")


def parsed(
    argv: Sequence[str] | None, name: str, description: str, **defaults: Any
) -> argparse.Namespace:
    """Return the options of a command line, checked.

    Args:
        argv: Command line without the name of the program; by default that of the process.
        name: Name of the recipe.
        description: What it does.
        defaults: Defaults of `samples`, `epochs`, `unroll`, `seeds` and `seeds_others`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m neurenix_ms.recipes.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--samples", type=int, help="samples to train on")
    add("--held-out", type=int, default=16, help="unseen samples of each kind")
    add("--size", type=int, default=64, help="cells along each axis")
    add("--steps", type=int, default=12, help="steps of six hours")
    add("--particles", type=int, default=10_000, help="particles of a sample")
    add("--epochs", type=int, help="passes over all windows")
    add("--unroll", type=int, help="steps per training window")
    add("--features", type=int, nargs="+", default=[8, 16, 32], help="channels, fine to coarse")
    add("--seeds", type=int, help="runs of the networks that the experiment is about")
    add("--seeds-others", type=int, help="runs of all other networks")
    add("--seed", type=int, default=0, help="of the first run: weights and order")
    add("--data-seed", type=int, default=0, help="for the samples")
    add("--out", type=Path, default=Path("runs") / name, help="results, checkpoints")
    add_cache(parser, "samples", "neurenix-ms fit density_maps --data.density=FILE")
    add("--fresh", action="store_true", help="ignore checkpoints")
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(**defaults)
    options = parser.parse_args(argv)
    counts = ("samples", "held_out", "steps", "particles", "epochs", "unroll", "seeds")
    check_at_least(parser, options, **dict.fromkeys((*counts, "seeds_others"), 1))
    if options.unroll > options.steps:
        parser.error(f"--unroll must be at most --steps {options.steps}, got {options.unroll}")
    parts = 2 ** len(options.features)
    if options.size < parts or options.size % parts:
        parser.error(f"--size must be a multiple of {parts}, got {options.size}")
    return options


def noted(options: argparse.Namespace, *, training: bool = False) -> dict[str, Any]:
    """Return the options that a result depends on, or those that a training depends on."""
    without = WITHOUT_EFFECT + (TESTS_ONLY if training else ())
    return {name: value for name, value in vars(options).items() if name not in without}
