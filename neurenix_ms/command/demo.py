"""Train a multiscale and a single-scale network on porous media, and compare them.

It makes its own samples: images of grains and pores, whose diffusion is solved. A table of errors,
a picture and the checkpoints are written to the folder --out. An interrupted run resumes if it is
started again with the same options. The same as `python -m neurenix_ms.recipes.demo`; it needs the
extra `demo`.

Examples:

  neurenix-ms demo
  neurenix-ms demo --samples 60 --epochs 2 --size 32 --out runs/small
"""

import argparse

COUNTS = {
    "samples": (600, "geometries, including held-out"),
    "epochs": (12, "passes over all geometries"),
    "size": (64, "cells along each axis"),
    "seed": (0, "for geometries, weights and order"),
}
FOLDERS = {"out": ("runs/demo", "results, checkpoints"), "data": ("data", "cache of the samples")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms demo`."""
    for name, (value, words) in COUNTS.items():
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{words} (default: {value})"
        )
    for name, (folder, words) in FOLDERS.items():
        parser.add_argument(
            f"--{name}", default=folder, metavar="FOLDER", help=f"{words} (default: {folder})"
        )
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")


def run(options: argparse.Namespace) -> None:
    """Train and compare; the recipe writes its table itself."""
    try:
        from neurenix_ms.recipes.demo.command import main
    except ImportError as error:
        if "pip install" in str(error):
            raise
        raise ImportError(
            f"the demo needs {error.name}: pip install 'neurenix_ms[demo]'"
        ) from error
    words = [f"--{name}={getattr(options, name)}" for name in (*COUNTS, *FOLDERS)]
    main(words + (["--fresh"] if options.fresh else []))
