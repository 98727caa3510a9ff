"""Atomic writing of files, which are replaced as a whole or not at all."""

import os
import uuid
from collections.abc import Iterator
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
