"""Atomic writing of files and folders, which are replaced as a whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that replaces the target when the context ends without error.

    The temporary file is in the same folder, as `.NAME.<random>.tmp`. The previous content of the target
    is kept if writing fails or the process is killed.

    Args:
        path: Path of the target; its folder must exist.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically in one call; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def to_disk(path: str | os.PathLike[str]) -> None:
    """Bring the content of a file, or of all files in a folder, to the disk."""
    found = Path(path)
    for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


@contextmanager
def replacing_folder(path: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """Make a temporary folder that becomes the target when the context ends without error.

    The temporary folder is beside the target, as `.NAME.<random>.tmp`. A folder at the target is kept
    if writing fails, and removed once the new one is in its place.

    Args:
        path: Path of the target; the folder that it is in must exist.
        names: Files that a folder at the target may hold; with others in it, it is not replaced.

    Raises:
        ValueError: If the target is a file, or a folder that holds other files.
    """
    target = Path(os.path.abspath(path))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{path} must be a folder, got a file")
    others = (
        sorted({entry.name for entry in target.iterdir()} - {*names}) if target.is_dir() else []
    )
    if others:
        raise ValueError(
            f"{path} must be a new folder, or hold {sorted(names)} only, got {others[:5]} in it"
        )
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        to_disk(temporary)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
