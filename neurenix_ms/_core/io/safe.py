"""Weights in safetensors files."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.records import TensorRecord

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
SYSTEM_ERROR = re.compile(r"I/O error: (?P<words>.*) \(os error (?P<number>\d+)\)")


def safetensors() -> Any:
    """Return the package that reads and writes the files.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "sharing networks needs safetensors: pip install 'neurenix_ms[hub]'"
        ) from error
    return safetensors


def check_dtypes(state: Mapping[str, Tensor]) -> None:
    """Raise if an entry has a dtype that the format does not have."""
    for name, value in state.items():
        if value.dtype not in DTYPES.values():
            raise ValueError(
                f"state_dict[{name!r}] must have a dtype of safetensors, got {value.dtype}; "
                "convert it, or use neurenix_ms.save with the format 'nx'"
            )


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries on the CPU, none of which shares memory with another."""
    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state.items():
        value = value.to("cpu").contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() > value.nbytes:
            value = value.clone()  # the format has no tensors that share memory
        storages.add(storage.data_ptr())
        whole[name] = value
    return whole


def write_weights(state: dict[str, Tensor], path: Path) -> str:
    """Write the entries of a state dict, and return the checksum of the file.

    Raises:
        ValueError: If an entry has a dtype that the format does not have.
        OSError: If the disk is full or the folder is read-only.
    """
    check_dtypes(state)
    package = safetensors()
    try:
        package.torch.save_file(unshared(state), path, metadata={"format": "pt"})
    except package.SafetensorError as error:
        system = SYSTEM_ERROR.search(str(error))
        if system is None:
            raise
        renamed = OSError(int(system["number"]), system["words"], str(path))
        raise renamed from error
    return checksum(path)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_records(path: str | os.PathLike[str]) -> dict[str, TensorRecord]:
    """Return shape and dtype of every tensor in a file, without reading its values.

    Raises:
        ValueError: If the file is corrupted, or a dtype is not supported.
    """
    package = safetensors()
    found = {}
    try:
        with package.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in DTYPES:
                    raise ValueError(f"{name!r} has the dtype {kind}, which is not supported")
                size = tuple(part.get_shape())
                found[name] = TensorRecord(DTYPES[kind], size, (), 0, name, "cpu", 0, None)
    except (package.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} must be a safetensors file, got a corrupted or foreign one: {error}"
        ) from error
    return found


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts by name in front of the tensors of a file.

    Raises:
        ValueError: If the file is corrupted.
    """
    package = safetensors()
    try:
        with package.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (package.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} must be a safetensors file, got a corrupted or foreign one: {error}"
        ) from error


def read_weights(path: str | os.PathLike[str], device: str | torch.device | None) -> Any:
    """Return the tensors of a file by name.

    Raises:
        ValueError: If the file cannot be read.
    """
    package = safetensors()
    try:
        return package.torch.load_file(path, device=str(device or "cpu"))
    except package.SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file, got a corrupted one: {error}"
        ) from error
