"""A file of a whole pickled module becomes its state dict; nothing of the file is run.

`torch.save(model, path)` stores the Python objects of the model, and `torch.load` needs the code of
its authors to make them again. The weights are in the file all the same, in the `_parameters`,
`_buffers` and `_modules` of records that `opcodes` leaves in place of the objects.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.arguments import checked
from neurenix_ms.weights.opcodes import Call, Global, Persistent, interpret

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first pickle of a file written before torch 1.6
PROTOCOL_VERSION = 1001
MOST_MODULES = 100_000  # a few bytes can describe a tree without end
LONGEST_NAME = 1000
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
REBUILD_PARAMETER = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
REBUILD_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError),
    *(TypeError, EOFError, struct.error, zipfile.BadZipFile),
)

FetchBytes = Callable[[str], bytes]


@checked
def read_pickle(path: str | Path) -> dict[str, Any]:
    """State dict of the module that `torch.save(model, path)` stored whole.

    Neither the classes of the model nor any other code that the file names is imported or called,
    so a file of unknown origin does no harm, and the original project need not be installed. Both
    the format of today and the one from before torch 1.6 are read. Weights come back on the CPU,
    whatever device they were on, and share memory where the model shared it.

    Args:
        path: A file written by `torch.save`. If it holds a state dict instead of a module, that is
            returned as it is.

    Raises:
        ValueError: If the file is damaged, was not written by `torch.save`, holds something other
            than a module, or asks for something that no model needs.

    Examples:
        >>> import tempfile
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
    except DAMAGE as error:
        reason = f"the file is damaged ({type(error).__name__}: {error})"
        raise ValueError(f"cannot read {path}: {reason}") from error


def _read_zip(content: bytes) -> tuple[Any, FetchBytes]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    roots = [name for name in names if re.fullmatch("[^/]+/data.pkl", name)]
    if not roots:
        raise ValueError("it is a zip archive, but torch.save did not write it")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise ValueError("it is a TorchScript program, not a pickled module")

    def fetch(name: str) -> bytes:
        record = archive.getinfo(f"{folder}{name}")
        if record.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the record {name} is compressed, torch.save leaves it plain")
        return archive.read(record)

    if f"{folder}byteorder" in names and fetch("byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    root, _ = interpret(io.BytesIO(fetch("data.pkl")))
    return root, lambda key: fetch(f"data/{key}")


def _read_legacy(content: bytes) -> tuple[Any, FetchBytes]:
    """Five pickles (magic number, version, system, object, keys), then the storages one by one."""
    file = io.BytesIO(content)
    try:
        magic, _ = interpret(file)
    except (ValueError, *DAMAGE):
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
    sizes = {storage.key[2]: _dtype(storage.key[1]).itemsize for storage in storages}
    storage_bytes = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storage_bytes[key] = file.read(max(0, count) * sizes[key])
    return root, storage_bytes.__getitem__


def _state_dict(root: Any, fetch: FetchBytes) -> dict[str, Any]:
    tensors = _Tensors(fetch)
    if isinstance(root, dict):
        if not any(map(_makes_tensor, root.values())):
            raise ValueError(
                "it holds a dict without any tensor, neither a module nor a state dict"
            )
        return {_text(name): tensors.or_plain(name, value) for name, value in root.items()}
    if not _is_module(root):
        raise ValueError(f"it holds {_describe(root)}, not a module")
    return {name: tensors.make(name, value) for name, value in _entries(root)}


def _entries(root: Call) -> Iterator[tuple[str, Any]]:
    """Dotted name and record of every parameter and persistent buffer, in torch's order."""
    visited = 0
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        if visited > MOST_MODULES or len(prefix) > LONGEST_NAME:
            raise ValueError("it has modules without end, perhaps one contains itself")
        unsaved = module.state.get("_non_persistent_buffers_set", set())
        for name, value in module.state["_parameters"].items():
            if value is not None:
                yield prefix + _text(name), value
        for name, value in module.state["_buffers"].items():
            if value is not None and name not in unsaved:
                yield prefix + _text(name), value
        inner = [
            (f"{prefix}{_text(name)}.", child) for name, child in module.state["_modules"].items()
        ]
        for name, child in reversed(inner):
            if child is not None:
                if not _is_module(child):
                    raise ValueError(f"{name[:-1]!r} is {_describe(child)}, not a module")
                waiting.append((name, child))


class _Tensors:
    """Makes tensors of records, each storage once, and believes no size without comparing it."""

    def __init__(self, fetch: FetchBytes) -> None:
        self.fetch = fetch
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def or_plain(self, name: str, value: Any) -> Any:
        if _makes_tensor(value):
            return self.make(name, value)
        if not _is_plain(value):
            raise ValueError(f"{name!r} is {_describe(value)}, not a tensor")
        return value

    def make(self, name: str, record: Any) -> Tensor:
        if not _makes_tensor(record):
            raise ValueError(f"{name!r} is {_describe(record)}, not a tensor")
        while record.function.name in REBUILD_PARAMETER:
            record = record.args[0]
        stored, offset, size, stride, *rest = record.args
        if len(rest) > 2 and rest[2]:  # requires_grad, hooks, then marks as of a lazy conjugate
            raise ValueError(f"{name!r} is marked {rest[2]}, which is not supported")
        storage, start, length = self._storage(name, stored)
        numbers = (offset, *size, *stride)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(
                f"{name!r} has an offset, size or stride that is not a count: {numbers}"
            )
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        needed = last + 1 if math.prod(size) else 0
        if max(needed, math.prod(size)) > length:
            raise ValueError(
                f"{name!r} of size {tuple(size)} and stride {tuple(stride)} from {offset} on needs "
                f"more than the {length} values that are stored"
            )
        return storage.as_strided(size, stride, start + offset if needed else 0)

    def _storage(self, name: str, stored: Any) -> tuple[Tensor, int, int]:
        """All values of a storage, and where the part that is meant begins and how long it is."""
        if not isinstance(stored, Persistent) or stored.key[0] != "storage":
            raise ValueError(f"{name!r} has no storage")
        _, kind, key, _, count, *view = stored.key
        dtype = _dtype(kind)
        if (key, dtype) not in self.storages:
            content = bytearray(self.fetch(key))
            if len(content) != count * dtype.itemsize:
                raise ValueError(
                    f"the storage of {name!r} needs {count * dtype.itemsize} bytes, "
                    f"got {len(content)}"
                )
            empty = torch.empty(0, dtype=dtype)
            self.storages[key, dtype] = torch.frombuffer(content, dtype=dtype) if content else empty
        storage = self.storages[key, dtype]
        if not view or view[0] is None:  # only very old files name a part of a storage
            return storage, 0, storage.numel()
        _, start, length = view[0]
        if not 0 <= start <= start + length <= storage.numel():
            raise ValueError(f"{name!r} lies outside its storage of {storage.numel()} values")
        return storage, start, length


def _dtype(kind: Any) -> torch.dtype:
    if not isinstance(kind, Global) or kind.name not in DTYPES:
        raise ValueError(f"{_describe(kind)} is no kind of storage that is known here")
    return DTYPES[kind.name]


def _makes_tensor(record: Any) -> bool:
    names = REBUILD_PARAMETER | REBUILD_TENSOR
    return isinstance(record, Call) and record.function.name in names


def _is_module(record: Any) -> bool:
    state = record.state if isinstance(record, Call) else None
    return isinstance(state, dict) and {"_parameters", "_buffers", "_modules"} <= state.keys()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | bytes | None)


def _text(name: Any) -> str:
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise ValueError(f"a name must be a text of at most {LONGEST_NAME}, got {_describe(name)}")
    return name


def _describe(value: Any) -> str:
    if isinstance(value, Call):
        return f"an object of {value.function}"
    if isinstance(value, Global):
        return f"the name {value}"
    return f"a {type(value).__name__}"
