"""A reader for the state dict of a whole pickled module that runs no code of the file.

`torch.save(model, path)` stores the Python objects of the model, and `torch.load` needs their classes
to rebuild them. The weights are in the `_parameters`, `_buffers` and `_modules` of the objects, which
`opcodes` reads as records.
"""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.io.opcodes import Call, interpret, named_in
from neurenix_ms._core.io.records import (
    LONGEST_NAME,
    READ_ERRORS,
    TensorReader,
    described,
    makes_tensor,
    open_archive,
    storage_dtype,
    tensor_record,
    text,
)
from neurenix_ms.weights.rename import NESTED

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first pickle of a file written before torch 1.6
PROTOCOL_VERSION = 1001
PICKLES = 4  # magic number, version, system, object
MOST_MODULES = 100_000  # a few bytes can describe an infinite tree

FetchBytes = Callable[[str], bytes]


@checked
def read_pickle(path: str | Path) -> dict[str, Any]:
    """Return the state dict of a module that `torch.save(model, path)` stored as a whole.

    Neither the classes of the model nor any other code that the file refers to is imported or called.
    Files of unknown origin are therefore safe, and the original project need not be installed. The
    current format and the one before torch 1.6 are supported. Weights are returned on the CPU, and share
    memory if the model shared it.

    Args:
        path: A file written by `torch.save`. If it holds a state dict instead of a module, or a
            checkpoint with one of them under "state_dict", "model_state_dict" or "model", as those of
            Lightning, the state dict is returned.

    Raises:
        ValueError: If the file is corrupted, was not written by `torch.save`, holds something other
            than a module, or requests a call that no model needs.

    Examples:
        >>> import tempfile, torch
        >>> model = torch.nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(model, f"{folder}/model.pt")
        ...     state = read_pickle(f"{folder}/model.pt")
        >>> list(state)
        ['weight', 'bias']
        >>> bool((state["weight"] == model.weight).all())
        True
    """
    content = Path(path).read_bytes()
    try:
        read = _read_zip if content.startswith(b"PK") else _read_legacy
        return _state_dict(*read(content))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except READ_ERRORS as error:
        reason = f"the file is corrupted ({type(error).__name__}: {error})"
        raise ValueError(f"cannot read {path}: {reason}") from error


def names_in_pickle(path: str | Path) -> set[str]:
    """Return the dotted names of all classes and functions that a file of `torch.save` mentions.

    `torch.load(path, weights_only=False)` imports them, and calls those that the file asks to call.

    Args:
        path: The file; nothing in it is run.

    Raises:
        ValueError: If the file is corrupted, was not written by `torch.save`, or requests a call that no
            model needs.
    """
    content = Path(path).read_bytes()
    try:
        if content.startswith(b"PK"):
            open_archive(io.BytesIO(content))  # checks the records
            archive = zipfile.ZipFile(io.BytesIO(content))
            (root,) = (n for n in archive.namelist() if re.fullmatch("[^/]+/data.pkl", n))
            return named_in(io.BytesIO(archive.read(root)))
        _read_legacy(content)
        file = io.BytesIO(content)
        return set().union(*(named_in(file) for _ in range(PICKLES)))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except READ_ERRORS as error:
        reason = f"the file is corrupted ({type(error).__name__}: {error})"
        raise ValueError(f"cannot read {path}: {reason}") from error


def _read_zip(content: bytes) -> tuple[Any, FetchBytes]:
    root, fetch, _ = open_archive(io.BytesIO(content))
    return root, fetch


def _read_legacy(content: bytes) -> tuple[Any, FetchBytes]:
    """Read five pickles (magic number, version, system, object, keys), then the storages."""
    file = io.BytesIO(content)
    try:
        magic, _ = interpret(file)
    except (ValueError, *READ_ERRORS):
        magic = None
    if magic != MAGIC_NUMBER:
        raise ValueError("torch.save did not write it")
    version, _ = interpret(file)
    if version != PROTOCOL_VERSION:
        raise ValueError(f"its format version must be {PROTOCOL_VERSION}, got {version!r}")
    system, _ = interpret(file)
    if not system["little_endian"]:
        raise ValueError("its numbers are not little-endian")
    root, storages = interpret(file)
    keys, _ = interpret(file)
    sizes = {storage.key[2]: storage_dtype(storage.key[1]).itemsize for storage in storages}
    storage_bytes = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storage_bytes[key] = file.read(max(0, count) * sizes[key])
    return root, storage_bytes.__getitem__


def _state_dict(root: Any, fetch: FetchBytes) -> dict[str, Any]:
    reader = TensorReader(fetch)

    def entry(name: str, value: Any, or_plain: bool) -> Any:
        if not or_plain or makes_tensor(value):
            return reader.read(name, tensor_record(name, value))
        if not _is_plain(value):
            raise ValueError(f"{name!r} is {described(value)}, not a tensor")
        return value

    if isinstance(root, dict) and not any(map(makes_tensor, root.values())):
        root = next((root[name] for name in NESTED if _holds_weights(root.get(name))), root)
    if isinstance(root, dict):
        if not _holds_weights(root):
            raise ValueError(
                "it holds a dict without any tensor, neither a module nor a state dict, also not as "
                f"one of {list(NESTED)}"
            )
        return {text(name): entry(name, value, or_plain=True) for name, value in root.items()}
    if not _is_module(root):
        raise ValueError(f"it holds {described(root)}, not a module")
    return {name: entry(name, value, or_plain=False) for name, value in _entries(root)}


def _entries(root: Call) -> Iterator[tuple[str, Any]]:
    """Yield dotted name and record of every parameter and persistent buffer, in the order of torch."""
    visited = 0
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        if visited > MOST_MODULES or len(prefix) > LONGEST_NAME:
            raise ValueError("it has too many modules, perhaps one contains itself")
        unsaved = module.state.get("_non_persistent_buffers_set", set())
        for name, value in module.state["_parameters"].items():
            if value is not None:
                yield prefix + text(name), value
        for name, value in module.state["_buffers"].items():
            if value is not None and name not in unsaved:
                yield prefix + text(name), value
        inner = [
            (f"{prefix}{text(name)}.", child) for name, child in module.state["_modules"].items()
        ]
        for name, child in reversed(inner):
            if child is not None:
                if not _is_module(child):
                    raise ValueError(f"{name[:-1]!r} is {described(child)}, not a module")
                waiting.append((name, child))


def _holds_weights(record: Any) -> bool:
    if isinstance(record, dict):
        return any(map(makes_tensor, record.values()))
    return _is_module(record)


def _is_module(record: Any) -> bool:
    state = record.state if isinstance(record, Call) else None
    return isinstance(state, dict) and {"_parameters", "_buffers", "_modules"} <= state.keys()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | bytes | None)
