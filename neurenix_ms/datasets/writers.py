"""Create arrays on disk that results are written to slice by slice."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms.datasets.readers import kind_of, needed

CHUNK = 2**20  # values of a chunk, if nothing else is asked for


@checked
def create_array(
    path: str | os.PathLike[str],
    shape: Sequence[int],
    dtype: Any = "float32",
    *,
    chunks: Sequence[int] | None = None,
    axes: Sequence[str] | None = None,
    units: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Create an array on disk to write slices into, such as the `out` of `TiledModel`.

    The ending says the format: `.npy`, `.zarr` (in chunks, compressed), `.h5`, `.nc`, `.tif`, or plain
    numbers (`.raw`, `.bin`, `.dat`). What is not written is 0.

    Args:
        path: The file or folder to create.
        shape: Length of every axis.
        dtype: Type of its values.
        chunks: Shape of the chunks of `.zarr`, `.h5` and `.nc`; about a million values by default.
        axes: Names of the axes, for `.zarr`, `.h5` and `.nc`.
        units: Unit of the values, likewise.
        overwrite: Replace what is there.

    Returns:
        An array that slices can be assigned to. Call its `close` or `flush`, where it has one, at
        the end.

    Raises:
        ValueError: If something is at `path`, the format is not among these, or an argument does not
            fit.
        ImportError: If the writer of this format is missing (the extra `io`).

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = create_array(f"{folder}/labels.npy", (1, 64, 64), "uint8")
        ...     out[0, :8] = 1
        ...     int(out.sum())
        512
    """
    target = Path(path)
    shape = check_integers("shape", shape, 1, min_length=1)
    kind = kind_of(target)
    if kind not in WRITERS:
        raise ValueError(f"path must have an ending of one of {sorted(WRITERS)}, got {target}")
    if chunks is not None and (len(chunks) != len(shape) or min(chunks) < 1):
        raise ValueError(f"chunks must have {len(shape)} lengths of 1 or more, got {list(chunks)}")
    if axes is not None and len(axes) != len(shape):
        raise ValueError(f"axes must have {len(shape)} names, got {list(axes)}")
    if not overwrite and target.exists():
        raise ValueError(f"path must be free, or overwrite=True, got {target}, which exists")
    if not target.parent.is_dir():
        raise ValueError(f"path must be in a folder that exists, got {target}")
    pieces = tuple(chunks) if chunks is not None else default_chunks(shape)
    return WRITERS[kind](target, tuple(shape), np.dtype(dtype), pieces, axes, units)


def default_chunks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of about a million values, with the last three axes cut equally."""
    edge = max(1, round(CHUNK ** (1 / min(3, len(shape)))))
    front = len(shape) - min(3, len(shape))
    return (*(1,) * front, *(min(n, edge) for n in shape[front:]))


def _npy(path: Path, shape: Any, dtype: np.dtype, *_: Any) -> Any:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _raw(path: Path, shape: Any, dtype: np.dtype, *_: Any) -> Any:
    return np.memmap(path, dtype, "w+", shape=shape)


def _zarr(path: Path, shape: Any, dtype: np.dtype, chunks: Any, axes: Any, units: Any) -> Any:
    attributes = {} if units is None else {"units": units}
    return needed("zarr").create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        dimension_names=axes,
        attributes=attributes,
        overwrite=True,
    )


def _hdf5(path: Path, shape: Any, dtype: np.dtype, chunks: Any, axes: Any, units: Any) -> Any:
    file = needed("h5py").File(path, "w")
    made = file.create_dataset("data", shape, dtype, chunks=chunks)
    for number, name in enumerate(axes or ()):
        made.dims[number].label = name
    if units is not None:
        made.attrs["units"] = units
    return _OfFile(made, file)


def _netcdf(path: Path, shape: Any, dtype: np.dtype, chunks: Any, axes: Any, units: Any) -> Any:
    file = needed("h5netcdf").File(path, "w")
    names = list(axes or (f"dim_{number}" for number in range(len(shape))))
    file.dimensions = dict(zip(names, shape, strict=True))
    made = file.create_variable("data", names, dtype, chunks=chunks)
    if units is not None:
        made.attrs["units"] = units
    return _OfFile(made, file)


def _tiff(path: Path, shape: Any, dtype: np.dtype, *_: Any) -> Any:
    large = math.prod(shape) * dtype.itemsize > 2**31
    return needed("tifffile").memmap(path, shape=shape, dtype=dtype, bigtiff=large)


class _OfFile:
    """An array in an open file, which `close` closes."""

    def __init__(self, array: Any, file: Any) -> None:
        self.array, self.file = array, file
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = value

    def flush(self) -> None:
        """Write what is buffered."""
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


WRITERS: dict[str, Callable[..., Any]] = {
    "npy": _npy,
    "raw": _raw,
    "zarr": _zarr,
    "hdf5": _hdf5,
    "netcdf": _netcdf,
    "tiff": _tiff,
}
