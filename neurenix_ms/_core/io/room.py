"""Disk space for files that libraries write, and the error of the system where they raise another."""

import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import torch

HEAD = 2**20  # bytes of an HDF5 file beside its numbers


def reserve(descriptor: int, size: int) -> None:
    """Reserve disk space, since writing to a mapped file on a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # pragma: no cover, of macOS and Windows
        os.truncate(descriptor, size)


def check_room(path: Path, size: int) -> None:
    """Raise unless a file of this size can be written beside a path or in its place.

    Args:
        path: The file. What is there is not changed, and its space counts as free.
        size: Number of bytes.

    Raises:
        OSError: If the disk is full.
    """
    if path.is_file() and hasattr(os, "posix_fallocate"):
        size -= path.stat().st_blocks * 512
    temporary = path.with_name(f".tmp.{uuid.uuid4().hex}.{path.name}")
    try:
        with open(temporary, "xb") as file:
            reserve(file.fileno(), max(1, size))
    finally:
        temporary.unlink(missing_ok=True)


def save_to(file: BinaryIO, content: Any) -> None:
    """Write plain values and tensors by `torch.save`.

    Raises:
        OSError: If the disk is full: torch raises a RuntimeError about positions in the file instead, as
            it cannot complete the file.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:
        renamed = error.__context__ if isinstance(error.__context__, OSError) else error
        if renamed is error:
            raise
        raise renamed from None
