"""Options that recipes share, and their checks."""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neurenix_ms._core.deprecation import warn_renamed
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


def add_data(parser: argparse.ArgumentParser, own: str, cache: str | None) -> None:
    """Add `--data`, a file of the user's own or the folder of the cache, and how the file is read.

    Args:
        parser: Parser to extend.
        own: What such a file holds.
        cache: What the cache holds otherwise; None if there is no cache.
    """
    otherwise = "" if cache is None else f"; or the folder of the cache of {cache}"
    parser.add_argument(
        "--data",
        type=Path,
        default=None if cache is None else Path("data"),
        metavar="PATH",
        help=f"a file (.npy, .nc, .zarr, .h5, .tif, .raw, ...) of {own}{otherwise}",
    )
    parser.add_argument("--key", help="name of the array in a file of several")
    parser.add_argument(
        "--shape", type=lengths, metavar="N,N,...", help="shape of a raw binary file"
    )
    parser.add_argument("--dtype", help="type of a raw binary file, such as uint8 or '>u2'")


def add_cache(parser: argparse.ArgumentParser, held: str, instead: str) -> None:
    """Add `--cache`, the folder of a cache; `--data` is its old spelling.

    Args:
        parser: Parser to extend.
        held: What is in the cache.
        instead: Command that takes a file of the user's own.
    """
    folder: dict[str, Any] = {
        "type": Path,
        "action": _CacheFolder,
        "const": instead,
        "dest": "cache",
    }
    parser.add_argument(
        "--cache", **folder, default=Path("data"), help=f"folder in which {held} are kept"
    )
    parser.add_argument("--data", **folder, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


class _CacheFolder(argparse.Action):
    """Store the folder of a cache; `const` is the command that takes a file instead."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string == "--data":
            warn_renamed("--data", "--cache")
        try:
            is_file = values.is_file() or bool(kind_of(values))
        except ValueError:
            is_file = False
        if is_file:
            parser.error(
                f"--cache must be the folder of a cache, got {values}; files of your own are for "
                f"{self.const}"
            )
        setattr(namespace, self.dest, values)


def own_array(parser: argparse.ArgumentParser, options: argparse.Namespace) -> DiskArray | None:
    """Return the array in a file that `--data` names; None for the folder of a cache, and for nothing.

    Exits with an error message if the file is not usable.
    """
    path, has_cache = options.data, parser.get_default("data") is not None
    try:
        is_file = path is not None and bool(kind_of(path))
    except ValueError as error:
        if path.is_file() or not has_cache:
            parser.error(f"--data: {error}")
        is_file = False
    if not is_file:
        if (options.key, options.shape, options.dtype) != (None, None, None):
            got = f"the folder {path}" if has_cache else "none"
            parser.error(f"--key, --shape and --dtype are for a file in --data, got {got}")
        return None
    with readable(parser):
        return open_array(path, options.key, shape=options.shape, dtype=options.dtype)


def add_time_step(parser: argparse.ArgumentParser) -> None:
    """Add `--dt`, the time of a step of a file in `--data`."""
    parser.add_argument(
        "--dt", type=float, help="time of a step in a file in --data; 1 if not given"
    )


def time_step(
    parser: argparse.ArgumentParser, options: argparse.Namespace, array: DiskArray | None
) -> float:
    """Return the time of a step of a file; exit with an error message if it is given without a file."""
    if array is None and options.dt is not None:
        parser.error(f"--dt is for a file in --data, got the folder {options.data}")
    dt = 1.0 if options.dt is None else float(options.dt)
    if not 0 < dt < math.inf:
        parser.error(f"--dt must be above 0 and finite, got {dt:g}")
    return dt


@contextmanager
def readable(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Exit with an error message of one line if a file of `--data` cannot be used."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(f"--data: {str(error).partition(chr(10))[0]}")
