"""Create arrays on disk that results are written to slice by slice."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms._core.io.atomic import naming, replacing_path
from neurenix_ms._core.io.room import HEAD, check_room, reserve
from neurenix_ms.datasets.coordinates import Coordinate
from neurenix_ms.datasets.readers import KINDS, kind_of, needed, number_dtype

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
    coordinates: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Any:
    """Create an array on disk to write slices into, such as the `out` of `TiledModel`.

    The suffix of the name selects the format: `.npy`, `.zarr` (in chunks, compressed), `.h5`, `.nc`,
    `.tif`, or raw binary (`.raw`, `.bin`, `.dat`). Values that are not written are 0.

    Args:
        path: The file or folder to create.
        shape: Length of every axis.
        dtype: Type of its values.
        chunks: Shape of the chunks of `.zarr`, `.h5` and `.nc`; about a million values by default.
        axes: Names of the axes, for `.zarr`, `.h5` and `.nc`.
        units: Unit of the values, for `.zarr`, `.h5` and `.nc`.
        coordinates: Coordinates for `.nc` by name, as xarray takes them: tuples of the names of their
            axes, their values and attributes. An axis that is not one of `axes` is added to the file.
        attributes: Further attributes of the values, for `.zarr`, `.h5` and `.nc`.
        overwrite: Replace an existing file or folder.

    Returns:
        An array that slices can be assigned to. At the end, call its method `close` or `flush`, if it
        has one.

    Raises:
        ValueError: If `path` exists, the format is not supported, or an argument does not fit.
        OSError: If the disk is full. Space for all values is reserved, for `.h5` and `.nc` looked for,
            because a full disk would end the process later; `.zarr` raises when chunks are written.
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
    kind = writable_kind(target)
    if chunks is not None and (len(chunks) != len(shape) or min(chunks) < 1):
        raise ValueError(f"chunks must have {len(shape)} lengths of 1 or more, got {list(chunks)}")
    if axes is not None and len(axes) != len(shape):
        raise ValueError(f"axes must have {len(shape)} names, got {list(axes)}")
    _check_place(target, overwrite)
    about = _About(
        tuple(chunks) if chunks is not None else default_chunks(shape),
        None if axes is None else tuple(axes),
        {**(attributes or {}), **({} if units is None else {"units": units})},
        {name: _coordinate(name, given) for name, given in (coordinates or {}).items()},
    )
    _check_lengths(dict(zip(about.names(len(shape)), shape, strict=True)), about.coordinates)
    values = number_dtype("dtype", dtype)
    with naming(target, target):
        return _written(kind, target, tuple(shape), values, about)


def write_whole(target: Path, values: np.ndarray, overwrite: bool, **said: Any) -> None:
    """Write an array beside its place, and move it there when it is complete.

    Args:
        target: Its place.
        values: The array.
        overwrite: Replace what is there.
        said: Other arguments of `create_array`.
    """
    writable_kind(target)
    _check_place(target, overwrite)
    with replacing_path(target) as making:
        array = create_array(making, values.shape, values.dtype, **said)
        array[...] = values
        getattr(array, "flush", lambda: None)()
        getattr(array, "close", lambda: None)()


def _check_place(target: Path, overwrite: bool) -> None:
    """Raise if something is there that must not be replaced, or its folder is missing."""
    if not overwrite and target.exists():
        raise ValueError(f"path must be free, or overwrite=True, got {target}, which exists")
    if not target.parent.is_dir():
        raise ValueError(f"path must be in a folder that exists, got {target}")


@dataclass
class _About:
    """What a file says beside the values.

    Args:
        chunks: Shape of its chunks.
        axes: Names of the axes.
        attributes: Attributes of the array.
        coordinates: Coordinates by name.
    """

    chunks: tuple[int, ...]
    axes: tuple[str, ...] | None
    attributes: dict[str, Any]
    coordinates: dict[str, Coordinate] = field(default_factory=dict)

    def names(self, dims: int) -> tuple[str, ...]:
        """Return the names of the axes, in a format in which all have one."""
        return self.axes or tuple(f"dim_{number}" for number in range(dims))


def _written(kind: str, path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    """Create a file with room for its values."""
    size = math.prod(shape) * dtype.itemsize
    if kind in ("hdf5", "netcdf"):
        size += HEAD + sum(one.values.nbytes for one in about.coordinates.values())
    if kind != "zarr":
        check_room(path, size)
    made = WRITERS[kind](path, shape, dtype, about)
    if isinstance(made, np.memmap):
        with open(path, "r+b") as file:
            reserve(file.fileno(), path.stat().st_size)
    return made


def _coordinate(name: str, given: Any) -> Coordinate:
    """Return a coordinate of a tuple, or raise."""
    if not isinstance(given, Sequence) or len(given) != 3:
        raise ValueError(
            f"coordinates must be tuples (axes, values, attributes), got {type(given).__name__} for "
            f"{name!r}"
        )
    dims, values, about = given
    names = (dims,) if isinstance(dims, str) else tuple(str(dim) for dim in dims)
    made = Coordinate(names, np.asarray(values), dict(about))
    if made.values.ndim != len(made.dims):
        raise ValueError(
            f"coordinate {name!r} must have an axis for each of {made.dims}, got values of shape "
            f"{made.values.shape}"
        )
    return made


def _check_lengths(lengths: dict[str, int], coordinates: Mapping[str, Coordinate]) -> None:
    """Raise if the coordinates do not have the lengths of the axes."""
    for name, (dims, values, _) in coordinates.items():
        for dim, length in zip(dims, values.shape, strict=True):
            if lengths.setdefault(dim, length) != length:
                raise ValueError(
                    f"coordinate {name!r} must have {lengths[dim]} values along {dim!r}, got {length}"
                )


def default_chunks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of about a million values, with the last three axes cut equally."""
    edge = max(1, round(CHUNK ** (1 / min(3, len(shape)))))
    front = len(shape) - min(3, len(shape))
    return (*(1,) * front, *(min(n, edge) for n in shape[front:]))


def _npy(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _raw(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    return np.memmap(path, dtype, "w+", shape=shape)


def _zarr(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    return needed("zarr").create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=about.chunks,
        dimension_names=about.axes,
        attributes=about.attributes,
        overwrite=True,
    )


def _hdf5(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    file = needed("h5py").File(path, "w")
    made = file.create_dataset("data", shape, dtype, chunks=about.chunks)
    for number, name in enumerate(about.axes or ()):
        made.dims[number].label = name
    made.attrs.update(about.attributes)
    return _OfFile(made, file)


def _netcdf(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
    file = needed("h5netcdf").File(path, "w")
    names = about.names(len(shape))
    lengths = dict(zip(names, shape, strict=True))
    for dims, values, _ in about.coordinates.values():
        lengths |= dict(zip(dims, values.shape, strict=True))
    file.dimensions = lengths
    made = file.create_variable("data", names, dtype, chunks=about.chunks)
    made.attrs.update(about.attributes)
    for name, (dims, values, attributes) in about.coordinates.items():
        text = values.dtype.kind in "OUS"
        kind = needed("h5py").string_dtype() if text else values.dtype
        one = file.create_variable(name, dims, kind, data=values.astype(object) if text else values)
        one.attrs.update(attributes)
    if others := _auxiliary(about, names):
        made.attrs["coordinates"] = " ".join(others)
    return _OfFile(made, file)


def _auxiliary(about: _About, names: Sequence[str]) -> list[str]:
    """Return the coordinates that readers find by name only (CF conventions, 5): of no axis of their
    own, and neither bounds nor a projection."""
    related = {about.attributes.get("grid_mapping")}
    related |= {one.attributes.get("bounds") for one in about.coordinates.values()}
    return [name for name in about.coordinates if name not in names and name not in related]


def _tiff(path: Path, shape: Any, dtype: np.dtype, about: _About) -> Any:
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


def writable_kind(path: Path) -> str:
    """Return the kind of a file by its name; raise unless `create_array` can write it."""
    kind = kind_of(path)
    if kind not in WRITERS:
        endings = sorted(ending for ending, known in KINDS.items() if known in WRITERS)
        raise ValueError(f"path must have an ending of one of {endings}, got {path}")
    return kind
