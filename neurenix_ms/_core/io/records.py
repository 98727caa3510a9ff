"""A reader of `torch.save` files that checks every size and runs no code of the file."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from neurenix_ms._core.checks import shown
from neurenix_ms._core.io.opcodes import Call, Global, Persistent, interpret

LONGEST_NAME = 1000
MOST_AXES = 64
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
# exceptions of the readers on corrupted bytes
READ_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError),
    *(RuntimeError, TypeError, EOFError, OSError, struct.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class TensorRecord:
    """The description of a tensor in a file, of which no number is trusted before it is checked.

    Args:
        dtype: Type of its values.
        size: Its shape.
        stride: Its strides, in values.
        offset: Its start in the storage, in values.
        key: Name of the storage.
        location: Device of the tensor when it was saved.
        count: Number of values of the whole storage, according to the file.
        view: Start and length of the part of the storage that is used, in files of very old versions.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    key: str
    location: str
    count: int
    view: tuple[int, int] | None

    @property
    def storage_bytes(self) -> int:
        """Number of bytes of the whole storage."""
        return self.count * self.dtype.itemsize

    @property
    def needed(self) -> int:
        """Number of values from the start of the storage to the last value of the tensor."""
        last = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return self.offset + last + 1 if math.prod(self.size) else 0


def tensor_record(name: str, record: Any) -> TensorRecord:
    """Return the checked description of a tensor, which does not exceed its storage.

    Args:
        name: Name of the entry, for the message.
        record: The entry as returned by `interpret`.

    Raises:
        ValueError: If the record is not a tensor, or its numbers do not fit each other.
    """
    while makes_tensor(record) and record.function.name in REBUILD_PARAMETER and record.args:
        record = record.args[0]
    if not makes_tensor(record) or len(record.args) < 4:
        raise ValueError(f"{name!r} is {described(record)}, not a tensor")
    stored, offset, size, stride, *rest = record.args
    if len(rest) > 2 and rest[2]:  # requires_grad, hooks, then flags such as the conjugate bit
        raise ValueError(f"{name!r} has the flags {described(rest[2])}, which are not supported")
    key = stored.key if isinstance(stored, Persistent) else None
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
        raise ValueError(f"{name!r} has no storage")
    _, kind, place, location, count, *view = key
    part = view[0][1:] if view and view[0] is not None else None
    tuples = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    numbers = (count, offset, *size, *stride, *(part or ())) if tuples else ()
    whole = all(type(number) is int and number >= 0 for number in numbers)
    if not tuples or not whole or len(size) > MOST_AXES or not isinstance(place, str):
        raise ValueError(
            f"{name!r} must have integers of at least 0 as offset, size and stride, "
            f"got {shown(numbers)}"
        )
    found = TensorRecord(
        storage_dtype(kind), size, stride, offset, place, str(location), count, part
    )
    length = count if part is None else part[1]
    if part is not None and part[0] + part[1] > count:
        raise ValueError(f"{name!r} lies outside its storage of {count} values")
    if max(found.needed, math.prod(size)) > length:
        raise ValueError(
            f"{name!r} of size {tuple(size)}, stride {tuple(stride)} and offset {offset} needs "
            f"more than the {length} values that are stored"
        )
    return found


def storage_dtype(kind: Any) -> torch.dtype:
    """Return the dtype of a storage, by its class in the file."""
    if not isinstance(kind, Global) or kind.name not in DTYPES:
        raise ValueError(f"{described(kind)} is not a supported storage class")
    return DTYPES[kind.name]


def makes_tensor(record: Any) -> bool:
    """Return whether a record is a tensor or a parameter."""
    names = REBUILD_PARAMETER | REBUILD_TENSOR
    return isinstance(record, Call) and record.function.name in names


def text(name: Any) -> str:
    """Return a name, or raise unless it is a string of at most `LONGEST_NAME` characters."""
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"a name must be a string of at most {LONGEST_NAME} characters, got {described(name)}"
        )
    return name


def described(value: Any) -> str:
    """Return a short description of a record."""
    if isinstance(value, Call):
        return f"an object of {value.function.name[:LONGEST_NAME]}"
    if isinstance(value, Global):
        return f"the name {value.name[:LONGEST_NAME]}"
    return f"a {type(value).__name__}"


def open_archive(
    file: IO[bytes],
) -> tuple[Any, Callable[[str], bytes], dict[str, int]]:
    """Read the structure of a zip archive of `torch.save`, without its storages.

    Args:
        file: Opened for reading, at any position.

    Returns:
        The object as records, a function that returns the bytes of a storage by its name, and the
        number of bytes of every storage by name.

    Raises:
        ValueError: If `torch.save` did not write it, or a record is compressed or duplicated.
    """
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    roots = [name for name in names if re.fullmatch("[^/]+/data.pkl", name)]
    if not roots:
        raise ValueError("it is a zip archive, but torch.save did not write it")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise ValueError("it is a TorchScript program, not a pickled module")
    if len(set(names)) < len(names) or not all(name.startswith(folder) for name in names):
        raise ValueError("it has two records of the same name, or records in several folders")

    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            name = entry.filename.removeprefix(folder)
            raise ValueError(f"the record {name} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > file.seek(0, io.SEEK_END):
        raise ValueError("its records are longer than the file")

    def fetch(name: str) -> bytes:
        return archive.read(f"{folder}{name}")

    if f"{folder}byteorder" in names and fetch("byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    root, _ = interpret(io.BytesIO(fetch("data.pkl")))
    prefix = f"{folder}data/"
    sizes = {
        entry.filename.removeprefix(prefix): entry.file_size
        for entry in entries
        if entry.filename.startswith(prefix)
    }
    return root, lambda key: fetch(f"data/{key}"), sizes


class TensorReader:
    """A reader of tensors that reads every storage once and checks its size.

    Args:
        fetch: A function that returns the bytes of a storage by its name.
    """

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self.fetch = fetch
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def read(self, name: str, found: TensorRecord) -> Tensor:
        """Return the tensor of a record, on the CPU; tensors of one storage share its memory."""
        place = (found.key, found.dtype)
        if place not in self.storages:
            content = bytearray(self.fetch(found.key))
            if len(content) != found.storage_bytes:
                raise ValueError(
                    f"the storage of {name!r} needs {found.storage_bytes} bytes, got {len(content)}"
                )
            empty = torch.empty(0, dtype=found.dtype)
            self.storages[place] = (
                torch.frombuffer(content, dtype=found.dtype) if content else empty
            )
        start = 0 if found.view is None else found.view[0]
        offset = start + found.offset if found.needed else 0
        return self.storages[place].as_strided(found.size, found.stride, offset)
