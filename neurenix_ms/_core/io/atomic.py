"""Atomic writing of files and folders, which are replaced as a whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

WHILE_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)  # errors that name no file


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that replaces the target when the context ends without error.

    Args:
        path: Path of the target; its folder must exist.
    """
    with replacing_path(path) as temporary, open(temporary, "xb") as file:
        yield file


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically in one call; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing_folder(path: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """Make a temporary folder that becomes the target when the context ends without error.

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
    with replacing_path(target) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def replacing_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a free path; the file or folder made there replaces the target when the context ends.

    The path is beside the target, as `.tmp.<random>.NAME`, with the endings of the target. What was at
    the target is kept if an error is raised or the process is killed.

    Args:
        path: Path of the target; the folder that it is in must exist.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp.{uuid.uuid4().hex}.{target.name}")
    with naming(target, temporary):
        try:
            yield temporary
            to_disk(temporary)
            move(temporary, target)
        finally:
            remove(temporary)


@contextmanager
def naming(target: Path, hidden: Path) -> Iterator[None]:
    """Name the target in errors of the system that name a hidden path, or none as on a full disk.

    Args:
        target: What the user asked for.
        hidden: A temporary file or folder.
    """
    try:
        yield
    except OSError as error:
        renamed = error
        if error.filename is None and error.errno in WHILE_WRITING:
            error.filename = str(target)
        elif isinstance(error.filename, str | os.PathLike):
            if Path(error.filename).is_relative_to(hidden):
                renamed = OSError(error.errno, error.strerror, str(target))
        elif str(hidden) in str(error):  # of a library that writes the file by itself
            renamed = OSError(str(error).replace(str(hidden), str(target)))
        if renamed is error:
            raise
        raise renamed from error


def move(made: Path, target: Path) -> None:
    """Move a complete file or folder to its place on the same disk, and remove what was there.

    One rename replaces a file. A folder has to be moved away before, to `made` with the ending `.old`,
    where it is found again if the process is killed between the two renames.
    """
    old = made.with_name(f"{made.name}.old")
    remove(old)
    if target.is_dir() or (made.is_dir() and target.exists()):
        os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: str | os.PathLike[str]) -> None:
    """Bring the content of a file, or of all files in a folder, to the disk."""
    found = Path(path)
    for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
