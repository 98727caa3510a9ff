"""Open arrays on disk so that only the slices that are asked for are read."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms.datasets.chunks import KeptChunks
from neurenix_ms.datasets.coordinates import Coordinate
from neurenix_ms.datasets.readers import (
    READERS,
    FileError,
    check_layout,
    keys_of,
    kind_of,
    open_raw,
    state_of,
    unmap,
)

BETWEEN_CHECKS = 1e-3  # seconds between two checks of a file or folder, at least
LONGEST_WAIT = 100  # checks of a folder take at most this fraction of the time: 1 / LONGEST_WAIT
MOST_COPIED = 2**21  # bytes of a slice that is copied from a file mapped into memory


@checked
def open_array(
    path: str | os.PathLike[str],
    key: str | int | None = None,
    *,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    offset: int = 0,
    fill: float | Literal["keep"] | None = None,
) -> "DiskArray":
    """Open an array in a file, of which only the requested slices are read.

    Use it for images and volumes larger than memory: pass the result to `TiledModel` or to a dataset of
    crops. The suffix of the name selects the format: `.npy`, `.npz` (not compressed), `.zarr` (v2 and
    v3), `.h5`, `.nc`, `.tif` (with the levels of a pyramid), `.nii`, a folder of TIFF files, or raw
    binary files (`.raw`, `.bin`, `.dat`). No file can run code.

    Args:
        path: The file or folder.
        key: Name of the array, in a file with several arrays; number of the level, in a TIFF pyramid.
        shape: Shape of the array in a raw binary file.
        dtype: Type of the values in a raw binary file, with a byte order, such as ">u2".
        offset: Number of bytes before the values in a raw binary file.
        fill: Replacement of missing values (NaN, and the fill value of the file); "keep" leaves them
            unchanged. By default a slice with missing values raises an error.

    Raises:
        ValueError: If the file cannot be read, is incomplete or of another size, has no such key, or
            does not contain numbers; when a slice is read, if it has missing values, or the file (in a
            folder, any of its files) has changed.
        ImportError: If the reader of this kind of file is missing (the extra `io`).

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.arange(24, dtype="<u2").tofile(f"{folder}/scan.raw")
        ...     scan = open_array(f"{folder}/scan.raw", shape=(2, 3, 4), dtype="<u2")
        ...     scan.shape, scan[1, :, 0].tolist(), scan.images(3).shape
        ((2, 3, 4), [12, 16, 20], (1, 1, 2, 3, 4))
    """
    return DiskArray(Path(path), key, (shape, dtype, offset), fill)


def keys_in(path: Path) -> list[str]:
    """Return the keys of a file of several arrays, or levels; an empty list for one that has no keys.

    Raises:
        ValueError: If the file cannot be read.
        ImportError: If the reader of this kind of file is missing (the extra `io`).
    """
    with _reading(path):
        return keys_of(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a `ValueError` with the path in place of the many kinds of errors of readers."""
    kind = kind_of(path)
    try:
        yield
    except (ImportError, FileError):
        raise
    except Exception as error:  # of a reader, at a file that is cut off or of another kind
        raise ValueError(
            f"{path} must be a complete {kind} file, got an error of its reader: {error}"
        ) from error


class DiskArray:
    """An array in a file, read slice by slice; see `open_array`, which makes it.

    It slices by integers and slices, and has a `shape`, a `dtype` and `ndim`. Copies in other
    processes, such as those of a `DataLoader`, open the file again.
    """

    def __init__(
        self,
        path: Path,
        key: str | int | None,
        layout: tuple[Sequence[int] | None, Any, int],
        fill: float | Literal["keep"] | None,
    ) -> None:
        self.path = path
        self.key = key
        self.fill = fill
        self._layout = layout
        self._open()
        self._order: tuple[int | None, ...] = tuple(range(len(self._source.array.shape)))
        self._as_in_file = True  # the order of the axes

    def _open(self) -> None:
        if not self.path.exists():
            raise ValueError(f"path must be a file or folder that exists, got {self.path}")
        kind = kind_of(self.path)
        if kind != "raw" and self._layout != (None, None, 0):
            raise ValueError(f"shape, dtype and offset are for raw binary files, got {self.path}")
        check_layout(*self._layout)
        self._state = self._current_state()
        with _reading(self.path):
            if kind == "raw":
                self._source = open_raw(self.path, *self._layout)
            else:
                self._source = READERS[kind](self.path, self.key)
        self.dtype = np.dtype(self._source.array.dtype)
        if self.dtype.kind not in "biufc":
            self.close()
            raise ValueError(f"{self.path} must hold numbers or booleans, got type {self.dtype}")

    @property
    def num_missing_chunks(self) -> int:
        """Number of chunks of a zarr array that are not in the file and are read as its fill value.

        They were never written, contain nothing else, or are lost. 0 for other files.
        """
        return self._source.missing_chunks()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        lengths = self._source.array.shape
        return tuple(1 if axis is None else int(lengths[axis]) for axis in self._order)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._order)

    @property
    def axes(self) -> tuple[str | None, ...] | None:
        """Names of the axes, where the file has them; None for those that `images` has added."""
        names = self._source.axes
        return names and tuple(None if axis is None else names[axis] for axis in self._order)

    @property
    def units(self) -> str | None:
        """Unit of the values, where the file names it."""
        return self._source.units

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Further metadata of the file: attributes, coordinates, voxel sizes."""
        return self._source.attributes

    @property
    def coordinates(self) -> dict[str, Coordinate]:
        """Coordinates of a NetCDF file with the bounds of its cells: tuples of the names of their axes,
        their values and attributes, by name. They are read at every call."""
        return self._source.coordinates()

    def images(
        self, spatial_dims: Literal[1, 2, 3], first: Literal["channels", "batch"] = "channels"
    ) -> "DiskArray":
        """Return the same array with the axes `(B, C, *S)` that networks take.

        Args:
            spatial_dims: Number of spatial axes, the last ones of the file.
            first: Meaning of the axis before them, if there is one.

        Raises:
            ValueError: If the file has fewer axes, or more than two others.
        """
        dims = len(self._source.array.shape)
        others = tuple(range(dims - spatial_dims))
        if first not in ("channels", "batch"):
            raise ValueError(f"first must be one of ['channels', 'batch'], got {shown(first)}")
        if dims < spatial_dims or len(others) > 2:
            raise ValueError(
                f"{self.path} must have {spatial_dims} spatial axes and at most two others, got shape "
                f"{tuple(self._source.array.shape)}"
            )
        fronts = {0: (None, None), 1: (None, 0) if first == "channels" else (0, None), 2: (0, 1)}
        view = object.__new__(DiskArray)
        view.__dict__ = {**self.__dict__}
        view._order = (*fronts[len(others)], *range(len(others), dims))
        view._as_in_file = len(others) == 2
        return view

    def __getitem__(self, index: Any) -> np.ndarray:
        self._check_state()
        if self._as_in_file and (plain := _plain(index, self._source.array.shape)) is not None:
            return self._filled(self._read(plain), plain)
        index = self._whole(index)
        slices = [at if isinstance(at, slice) else slice(at, at + 1) for at in index]
        added = tuple([i for i, axis in enumerate(self._order) if axis is None])
        wanted = tuple([at for i, at in enumerate(slices) if i not in added])
        piece = self._read(wanted)
        if added:
            piece = np.expand_dims(piece, added)
            piece = piece[tuple(at if i in added else slice(None) for i, at in enumerate(slices))]
        piece = self._filled(piece, slices)
        if all([isinstance(at, slice) for at in index]):  # noqa: C419, lists are faster here
            return piece
        return piece[tuple(slice(None) if isinstance(at, slice) else 0 for at in index)]

    def _read(self, wanted: tuple[slice, ...]) -> np.ndarray:
        try:
            piece = np.asarray(self._source.array[wanted])
            # a copy is contiguous, so that missing values are found faster, and it is used as it is
            return piece if piece.base is None or piece.nbytes > MOST_COPIED else piece.copy()
        except Exception as error:  # of a reader, at a piece that is cut off or corrupted
            raise ValueError(
                f"{self.path} must be a complete file, got an error of its reader: {error}"
            ) from error

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the values at points `(N, ndim)`, those of integers without a slice for each."""
        source = self._source.array
        plain = self.dtype.kind in "biu" and self._source.missing is None
        if not plain or not isinstance(source, np.ndarray | KeptChunks):
            return np.array([self[tuple(point)] for point in points.tolist()], self.dtype)
        self._check_state()
        known = points[:, [i for i, axis in enumerate(self._order) if axis is not None]]
        return source.at(known) if isinstance(source, KeptChunks) else source[tuple(known.T)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def release(self) -> None:
        """Release the memory that slices of a mapped file occupy.

        The system itself releases it only when memory is short.
        """
        unmap(self._source.array)

    def close(self) -> None:
        """Close the file; slices cannot be read any more."""
        self._source.close()

    def __repr__(self) -> str:
        names = f", axes={self.axes}" if self.axes else ""
        units = f", units={self.units!r}" if self.units else ""
        return (
            f"DiskArray({str(self.path)!r}, shape={self.shape}, dtype={self.dtype}{names}{units})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_source", "dtype")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.check_unchanged()
        self._open()

    def check_unchanged(self) -> None:
        """Raise if the file, or a file of the folder, has changed since the array was opened.

        Reading a slice also checks it; for a folder, the checks take at most a hundredth of the time.
        Call it after the last slice if a result depends on all of them.

        Raises:
            ValueError: If a size or modification time differs, or a file was added or removed. In a
                folder of more than 10,000 files, only 10,000 are checked.
        """
        if self._current_state() != self._state:
            raise ValueError(
                f"{self.path} must not change while it is open, got another size or modification time "
                "of it or of a file in it"
            )

    def _current_state(self) -> Any:
        start = time.monotonic()
        try:
            found = state_of(self.path)
        except FileNotFoundError:
            return None
        end = time.monotonic()
        self._next_check = end + max(
            BETWEEN_CHECKS, LONGEST_WAIT * (end - start) if found[2] else 0
        )
        return found

    def _check_state(self) -> None:
        if self._next_check <= time.monotonic():
            self.check_unchanged()

    def _whole(self, index: Any) -> tuple[int | slice, ...]:
        """Return one integer or slice per axis."""
        given = index if isinstance(index, tuple) else (index,)
        if given.count(Ellipsis) > 1 or len(given) > self.ndim + (Ellipsis in given):
            raise IndexError(f"an index must have at most {self.ndim} entries, got {shown(index)}")
        if Ellipsis in given:
            at = given.index(Ellipsis)
            rest = (slice(None),) * (self.ndim + 1 - len(given))
            given = (*given[:at], *rest, *given[at + 1 :])
        given = (*given, *(slice(None),) * (self.ndim - len(given)))
        pairs = enumerate(zip(given, self.shape, strict=True))
        return tuple([self._along(axis, at, length) for axis, (at, length) in pairs])

    def _along(self, axis: int, at: Any, length: int) -> int | slice:
        if isinstance(at, slice):
            start, stop, step = at.indices(length)
            if step < 1:
                raise IndexError(f"slices must have steps of 1 or more, got {at}")
            return slice(start, max(start, stop), step)
        if isinstance(at, int | np.integer) and not isinstance(at, bool):
            if not -length <= at < length:
                raise IndexError(f"index {at} is out of range for axis {axis} of length {length}")
            return int(at) % length
        raise IndexError(f"an array on disk takes integers and slices, got {shown(at)}")

    def _filled(self, piece: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
        if self.fill == "keep":
            return piece
        whole = piece.dtype.kind not in "fc"
        if not whole and piece.size > 0:
            least = piece.min()  # NaN, which differs from itself, if one of the values is
            whole = bool(least == least)
        if whole and self._source.missing is None:
            return piece
        missing = self._missing(piece)
        if missing is None or not missing.any():
            return piece
        if self.fill is not None:
            return np.where(missing, np.asarray(self.fill, piece.dtype), piece)
        first = np.argwhere(missing)[0].tolist()
        place = tuple(  # in the file, which has no axes that `images` has added
            at.start + (at.step or 1) * n
            for at, n, axis in zip(slices, first, self._order, strict=True)
            if axis is not None
        )
        raise ValueError(
            f"{self.path} must have a value everywhere, got {int(missing.sum())} missing values of "
            f"{piece.size} in this slice, the first at {place}; pass fill= a number, or 'keep'"
        )

    def _missing(self, piece: np.ndarray) -> np.ndarray | None:
        missing = np.isnan(piece) if piece.dtype.kind in "fc" else None
        if self._source.missing is not None:
            marked = piece == self._source.missing
            missing = marked if missing is None else missing | marked
        return missing


def _plain(index: Any, lengths: Sequence[int]) -> tuple[slice, ...] | None:
    """Return an index of a slice without a step for every axis, within these lengths; else None."""
    if type(index) is not tuple or len(index) != len(lengths):
        return None
    found = []
    for at, length in zip(index, lengths, strict=True):
        if type(at) is not slice or at.step is not None:
            return None
        start, stop = at.start, at.stop
        if not (type(start) is type(stop) is int and 0 <= start <= stop <= length):
            start, stop, _ = at.indices(length)
            at = slice(start, max(start, stop))
        found.append(at)
    return tuple(found)
