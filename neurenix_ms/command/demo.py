"""Train a multiscale and a single-scale network on porous media, and compare them.

It makes its own samples: images of grains and pores, whose diffusion is solved. A table of errors,
a picture and the checkpoints are written to the folder --out. An interrupted run resumes if it is
started again with the same options. The same as `python -m neurenix_ms.recipes.demo`; it needs the
extra `demo`. With a file in --data, boxes of an image of your own take the place of its samples.

Examples:

  neurenix-ms demo
  neurenix-ms demo --data rock.tif --pore-values 0 --out runs/rock
  neurenix-ms demo --samples 60 --epochs 2 --size 32 --out runs/small
"""

import argparse

COUNTS = {
    "samples": (600, "geometries, including held-out"),
    "epochs": (12, "passes over all geometries"),
    "size": (64, "cells along each axis"),
    "seed": (0, "for geometries, weights and order"),
}
PATHS = {
    "out": ("runs/demo", "FOLDER", "results, checkpoints"),
    "data": (
        "data",
        "PATH",
        "folder of the cache of the samples, or a file (.npy, .tif, .raw, ...) of labels of your own, "
        "of two axes, with the flow along the first; its last rows are held out",
    ),
}
OF_A_FILE = {
    "key": ("NAME", "name of the array in a file of several"),
    "shape": ("N,N", "of a file of plain numbers"),
    "dtype": ("TYPE", "of a file of plain numbers, such as uint8"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms demo`."""
    for name, (value, words) in COUNTS.items():
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{words} (default: {value})"
        )
    for name, (path, kind, words) in PATHS.items():
        parser.add_argument(
            f"--{name}", default=path, metavar=kind, help=f"{words} (default: {path})"
        )
    for name, (kind, words) in OF_A_FILE.items():
        parser.add_argument(f"--{name}", metavar=kind, help=words)
    parser.add_argument(
        "--pore-values",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="labels of the pores in a file in --data (default: 1)",
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
    given = [name for name in OF_A_FILE if getattr(options, name) is not None]
    words = [f"--{name}={getattr(options, name)}" for name in (*COUNTS, *PATHS, *given)]
    words += ["--pore-values", *map(str, options.pore_values)]
    main(words + (["--fresh"] if options.fresh else []))
