"""Keep the result of a prediction beside its place until it is complete, then move it there."""

import contextlib
import io
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from neurenix_ms._core.io.atomic import move, remove
from neurenix_ms._core.io.room import reserve
from neurenix_ms.datasets.readers import unmap
from neurenix_ms.datasets.writers import create_array, default_chunks, writable_kind

try:
    import fcntl
except ImportError:  # pragma: no cover, Windows has none
    fcntl = None  # type: ignore[assignment]

MAPPED = 2**26  # bytes of a mapped file that may stay in memory
AS_WRITTEN = {
    "npy": ".npy",
    "raw": ".raw",
}  # kinds that are written tile by tile; others at the end


def check_apart(target: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise if one of the inputs is the target or inside it, since it would be lost."""
    for path in inputs:
        if Path(path).resolve().is_relative_to(Path(target).resolve()):
            raise ValueError(f"target must not hold the model or the source, got {target}")


class Results:
    """The files of a prediction that is not complete, in a hidden folder beside its place.

    `growing` takes the tiles. `complete` appears when all tiles are in it and it has the format of the
    target; it is then moved to its place by one rename.

    Args:
        target: Where the result goes.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.kind = writable_kind(target)
        self.folder = target.with_name(f".{target.name}.part")
        self.growing = self.folder / f"growing{AS_WRITTEN.get(self.kind, '.npy')}"
        self.journal = self.folder / "journal"
        self.complete = self.folder / f"complete-{target.name}"
        self._making = self.folder / f"making-{target.name}"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other processes from it; the lock ends with the process.

        Raises:
            ValueError: If the target has no folder, or another process is writing it.
        """
        if not self.target.parent.is_dir():
            raise ValueError(f"target must be in a folder that exists, got {self.target}")
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            _lock(file, self.target)
            yield

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                remove(path)

    def create(self, shape: Sequence[int], dtype: Any) -> np.memmap:
        """Create the file that takes the tiles, with disk space for all of them.

        Several processes may do so at the same time: what one has written stays.
        """
        kind = np.dtype(dtype)
        header = b"" if self.kind == "raw" else npy_header(shape, kind)
        with open(os.open(self.growing, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            file.write(header)
            file.flush()
            reserve(file.fileno(), len(header) + math.prod(shape) * kind.itemsize)
        return self.open(shape, dtype)

    def open(self, shape: Sequence[int], dtype: Any) -> np.memmap:
        """Open the file that takes the tiles again."""
        if self.growing.suffix == ".npy":
            return np.lib.format.open_memmap(self.growing, "r+")
        return np.memmap(self.growing, dtype, "r+", shape=tuple(shape))

    def save(self, array: np.memmap) -> None:
        """Bring what is written to the disk, and give back its memory."""
        array.flush()
        give_back(array)

    def finish(self, said: Mapping[str, Any]) -> None:
        """Give the result the format of the target, and move it to its place.

        Args:
            said: Arguments of `create_array`: what the file says beside the values.
        """
        if self.growing.exists():
            if self.kind in AS_WRITTEN:
                os.replace(self.growing, self.complete)
            else:
                self._convert(said)
                remove(self.complete)
                os.replace(self._making, self.complete)
                self.growing.unlink()
        if self.complete.exists():
            move(self.complete, self.target)
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _convert(self, said: Mapping[str, Any]) -> None:
        """Copy the result chunk by chunk into a file of the target's format."""
        source = np.lib.format.open_memmap(self.growing, "r")
        remove(self._making)
        written = create_array(self._making, source.shape, source.dtype, **said)
        try:
            for index in blocks(source.shape):
                written[index] = source[index]
                unmap(source)
            getattr(written, "flush", lambda: None)()
        finally:
            getattr(written, "close", lambda: None)()


def give_back(array: np.ndarray) -> None:
    """Give back the memory of a mapped file, unless it is small; new pages take time."""
    if array.nbytes > MAPPED:
        unmap(array)


def blocks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield the index of every chunk of an array."""
    ranges = [
        [slice(at, min(at + edge, n)) for at in range(0, n, edge)]
        for n, edge in zip(shape, default_chunks(shape), strict=True)
    ]
    return itertools.product(*ranges)


def npy_header(shape: Sequence[int], dtype: np.dtype) -> bytes:
    """Return what a `.npy` file has in front of its numbers."""
    buffer = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(buffer, {**fields, "shape": tuple(shape)})
    return buffer.getvalue()


def _lock(file: IO[str], target: Path) -> None:
    if fcntl is None:  # pragma: no cover
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"only one process at a time can write {target}, got another that is writing it; wait "
            "until it has ended"
        ) from error
