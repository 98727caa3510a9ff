"""What is in a file: a network, weights or an array, and whether reading it can run code."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurenix_ms.command import _reading

if TYPE_CHECKING:
    from neurenix_ms._core.io.stored import Stored

Rows = list[tuple[str, str]]
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
SAFE = "yes: names and numbers only, no code"
MOST_KEYS = 100  # arrays of a file that get a row
LONGEST = 100  # of a value, in characters
HEAD = 8  # bytes at the start of a file that tell its kind


def contents(path: str, **layout: Any) -> Rows:
    """Return what is in a file, row by row.

    Args:
        path: A file or folder.
        **layout: Arguments of `open_array` for a raw binary file, or a file with several arrays.
    """
    place = _reading.existing(path)
    if (place / "config.json").is_file():
        return of_folder(place)
    if place.suffix == ".safetensors":
        return of_weights(place)
    if place.is_file() and (place.suffix in PICKLED or is_archive(place)):
        if layout or (place.suffix == ".bin" and not is_archive(place)):
            return of_array(place, layout)
        return of_pickle(place)
    return of_array(place, layout)


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive that is not one of NumPy."""
    with open(path, "rb") as file:
        return file.read(HEAD).startswith(b"PK") and path.suffix != ".npz"


def of_folder(path: Path) -> Rows:
    """Return what a folder of `save_pretrained` holds."""
    from neurenix_ms.sharing.reading import read_description

    content, stored = read_description(path)
    preset = [("preset", content["preset"])] if content["preset"] else []
    return [("kind", "folder of save_pretrained"), *preset, *network_rows(stored)]


def of_weights(path: Path) -> Rows:
    """Return what a safetensors file holds."""
    from neurenix_ms._core.io.safe import tensor_records

    records = tensor_records(path).values()
    sizes = [(r.size, str(r.dtype)) for r in records]
    return [("kind", "weights, safetensors"), ("safe to load", SAFE), *tensor_rows(sizes)]


def of_pickle(path: Path) -> Rows:
    """Return what a file of `save` or `torch.save` holds."""
    from neurenix_ms._core.io.opcodes import HarmfulCallError
    from neurenix_ms._core.io.records import DTYPES, REBUILD_PARAMETER, REBUILD_TENSOR
    from neurenix_ms._core.io.stored import is_stored, read_stored
    from neurenix_ms.weights import read_pickle
    from neurenix_ms.weights.pickles import names_in_pickle

    with open(path, "rb") as file:
        if is_stored(file):
            rows = network_rows(read_stored(file, path))
            return [("kind", "network, file of neurenix_ms.save"), *rows]
    rows = [("kind", "pickle of torch.save")]
    try:
        names = names_in_pickle(path)
    except ValueError as error:
        if not isinstance(error.__cause__, HarmfulCallError):
            raise
        return [*rows, ("safe to load", f"no: {error.__cause__}")]
    plain = {*REBUILD_TENSOR, *REBUILD_PARAMETER, *DTYPES, "collections.OrderedDict"}
    others = sorted(name for name in names - plain if not name.startswith("torch.storage."))
    if others:
        shown = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if others[8:] else "")
        verdict = (
            f"by neurenix_ms.weights.read_pickle, which runs nothing; torch.load(weights_only=False) "
            f"would import {shown}"
        )
    else:
        verdict = "yes, by torch.load(weights_only=True): tensors and plain values only"
    rows.append(("safe to load", verdict))
    try:
        state = read_pickle(path)
    except ValueError as error:
        return [*rows, ("weights", f"none that can be read alone: {error}")]
    tensors = [(tuple(v.shape), str(v.dtype)) for v in state.values() if hasattr(v, "dtype")]
    return [*rows, *tensor_rows(tensors)]


def of_array(path: Path, layout: Mapping[str, Any]) -> Rows:
    """Return what a file that `open_array` reads holds."""
    from neurenix_ms.bench.results import in_bytes
    from neurenix_ms.datasets import open_array
    from neurenix_ms.datasets.arrays import keys_in

    safe = ("safe to load", "yes, by neurenix_ms.datasets.open_array")
    keys = [] if layout else keys_in(path)
    if len(keys) > 1:
        return [("kind", f"{len(keys)} arrays; --key shows one"), safe, *key_rows(path, keys)]
    array = open_array(path, **layout)
    rows = [("kind", "array"), safe]
    rows += [("shape", "x".join(map(str, array.shape))), ("dtype", str(array.dtype))]
    if array.axes is not None:
        rows.append(("axes", ", ".join(str(axis) for axis in array.axes)))
    if array.units is not None:
        rows.append(("unit", array.units))
    rows.append(("size", in_bytes(math.prod(array.shape) * array.dtype.itemsize)))
    if missing := array.num_missing_chunks:
        rows.append(("chunks", f"{missing} are not in the file, and are read as its fill value"))
    return rows


def key_rows(path: Path, keys: Sequence[str]) -> Rows:
    """Return a row for each array of a file of several."""
    from neurenix_ms.bench.results import in_bytes
    from neurenix_ms.datasets import open_array

    rows = []
    for key in keys[:MOST_KEYS]:
        try:
            array = open_array(path, key)
        except ValueError as error:  # one that holds no numbers
            rows.append((f"  {key}", shortened(str(error).partition("\n")[0])))
            continue
        size = in_bytes(math.prod(array.shape) * array.dtype.itemsize)
        about = ["x".join(map(str, array.shape)), str(array.dtype), size, array.units]
        rows.append((f"  {key}", ", ".join(word for word in about if word)))
        array.close()
    return rows + ([("", f"and {len(keys) - MOST_KEYS} more")] if len(keys) > MOST_KEYS else [])


def network_rows(stored: "Stored") -> Rows:
    """Return what a network's file says of it."""
    import inspect

    from neurenix_ms._core.checks import shown
    from neurenix_ms._core.io.stored import class_named

    rows = [("safe to load", SAFE), ("class", stored.name)]
    if stored.config is None:
        rows.append(("arguments", "not in the file: load(path, model=...) needs the network"))
    else:
        defaults = inspect.signature(class_named(stored.name)).parameters
        for name, value in stored.config.items():
            default = defaults[name].default if name in defaults else None
            same = list(default) == value if isinstance(default, tuple) else default == value
            if not same:
                rows.append((f"  {name}", shortened(shown(value))))
    sizes = [(r.size, str(r.dtype)) for r in stored.tensors.values()]
    return [*rows, *tensor_rows(sizes)]


def shortened(text: str) -> str:
    """Return a text of at most `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def tensor_rows(tensors: Sequence[tuple[tuple[int, ...], str]]) -> Rows:
    """Return how many numbers tensors of these shapes and dtypes hold."""
    import torch

    from neurenix_ms.bench.results import in_bytes

    counts: dict[str, int] = {}
    for size, dtype in tensors:
        counts[dtype] = counts.get(dtype, 0) + math.prod(size)
    kinds = {dtype: getattr(torch, dtype.removeprefix("torch.")) for dtype in counts}
    numbers = ", ".join(f"{n:,} {d.removeprefix('torch.')}" for d, n in counts.items())
    total = in_bytes(sum(n * kinds[d].itemsize for d, n in counts.items()))
    return [("tensors", f"{len(tensors)}"), ("numbers", numbers or "none"), ("size", total)]
