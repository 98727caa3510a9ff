"""Options that recipes share, and their checks."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neurenix_ms._core.parsing import lengths
from neurenix_ms.datasets import open_array
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.readers import kind_of


def check_at_least(
    parser: argparse.ArgumentParser, options: argparse.Namespace, **least: float
) -> None:
    """Exit with an error message if a number is too small.

    Args:
        parser: Parser that exits.
        options: Parsed options: numbers, lists of numbers or None.
        least: The smallest value of each option, by its name.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if values and min(values) < bound:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must be at least {bound}, got {min(values)}")


def add_data(parser: argparse.ArgumentParser, own: str, cache: str) -> None:
    """Add `--data`, a file of the user's own or the folder of the cache, and how the file is read.

    Args:
        parser: Parser to extend.
        own: What such a file holds.
        cache: What the cache holds otherwise.
    """
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="PATH",
        help=f"a file (.npy, .nc, .zarr, .h5, .tif, .raw, ...) of {own}; or the folder of the cache of "
        f"{cache}",
    )
    parser.add_argument("--key", help="name of the array in a file of several")
    parser.add_argument(
        "--shape", type=lengths, metavar="N,N,...", help="shape of a raw binary file"
    )
    parser.add_argument("--dtype", help="type of a raw binary file, such as uint8 or '>u2'")


def own_array(parser: argparse.ArgumentParser, options: argparse.Namespace) -> DiskArray | None:
    """Return the array in a file that `--data` names; None for the folder of a cache.

    Exits with an error message if the file is not usable.
    """
    path = options.data
    try:
        kind_of(path)
    except ValueError as error:
        if path.is_file():
            parser.error(f"--data: {error}")
        if (options.key, options.shape, options.dtype) != (None, None, None):
            parser.error(
                f"--key, --shape and --dtype are for a file in --data, got the folder {path}"
            )
        return None
    with readable(parser):
        return open_array(path, options.key, shape=options.shape, dtype=options.dtype)


@contextmanager
def readable(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Exit with an error message of one line if a file of `--data` cannot be used."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(f"--data: {str(error).partition(chr(10))[0]}")
