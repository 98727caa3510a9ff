"""Readers of array files: each returns an object that slices, and what the file says about it."""

import contextlib
import hashlib
import itertools
import math
import mmap
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurenix_ms._core.checks import check_integer, check_integers, shown
from neurenix_ms.datasets.chunks import KeptChunks
from neurenix_ms.datasets.coordinates import Coordinate, bounds_of, read_coordinates

MOST_FILES = 10_000  # largest number of files of a folder that are checked for changes
RAW = (".raw", ".bin", ".dat")
KINDS = {
    ".npy": "npy",
    ".npz": "npz",
    ".zarr": "zarr",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "netcdf",
    ".nc4": "netcdf",
    ".cdf": "netcdf",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".btf": "tiff",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    **dict.fromkeys(RAW, "raw"),
}
Key = str | int | None


class FileError(ValueError):
    """An error of a reader here, rather than of the library that reads the file."""


@dataclass
class Source:
    """An open array.

    Args:
        array: Slices by integers and slices, and has a shape and a dtype.
        axes: Names of its axes.
        units: Unit of its values.
        missing: The value that marks missing ones, beside NaN.
        attributes: What else the file says.
        close: Closes the file.
        coordinates: Reads the coordinates by name.
        missing_chunks: Counts the chunks that are not in the file.
    """

    array: Any
    axes: tuple[str, ...] | None = None
    units: str | None = None
    missing: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None
    coordinates: Callable[[], dict[str, Coordinate]] = dict
    missing_chunks: Callable[[], int] = int


def kind_of(path: Path) -> str:
    """Return the kind of a file by its name, or of a folder by what is in it."""
    name = path.name.lower()
    for ending in sorted(KINDS, key=len, reverse=True):
        if name.endswith(ending):
            return KINDS[ending]
    if path.is_dir():
        if any((path / file).exists() for file in ("zarr.json", ".zarray", ".zgroup")):
            return "zarr"
        if any(KINDS.get(file.suffix.lower()) == "tiff" for file in path.iterdir()):
            return "stack"
    raise ValueError(
        f"path must end in one of {sorted(KINDS)}, or be a folder of these, got {path}"
    )


def check_layout(shape: Sequence[int] | None, dtype: Any, offset: int) -> None:
    """Raise unless a raw binary file can have this layout."""
    if shape is not None:
        check_integers("shape", shape, 1, min_length=1)
    if dtype is not None:
        number_dtype("dtype", dtype)
    check_integer("offset", offset, 0)


def open_raw(path: Path, shape: Sequence[int] | None, dtype: Any, offset: int) -> Source:
    """Map a raw binary file into memory."""
    if shape is None or dtype is None:
        raise FileError(f"a raw file needs shape and dtype, got {shape} and {dtype} for {path}")
    kind = np.dtype(dtype)
    needed, came = offset + math.prod(shape) * kind.itemsize, path.stat().st_size
    if needed != came:
        raise FileError(
            f"{path} must have {needed} bytes for shape {tuple(shape)}, dtype {kind} and offset "
            f"{offset}, got {came}"
        )
    return _mapped(np.memmap(path, kind, "r", offset, tuple(shape)))


def _npy(path: Path, key: Key) -> Source:
    _no_key(path, key)
    return _mapped(np.load(path, mmap_mode="r", allow_pickle=False))


def _npz(path: Path, key: Key) -> Source:
    with zipfile.ZipFile(path) as archive:
        names = _npz_members(archive)
        info = names[_chosen(path, key, names)]
        if info.compress_type != zipfile.ZIP_STORED:
            raise FileError(
                f"{path} must not be compressed, since a compressed array cannot be read in slices; "
                "write it by numpy.savez or as .npy"
            )
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = {
                1: np.lib.format.read_array_header_1_0,
                2: np.lib.format.read_array_header_2_0,
            }
            if version[0] not in header:
                raise FileError(f"{path} must hold arrays of NumPy's format 1 or 2, got {version}")
            shape, fortran, dtype = header[version[0]](file)
            before = file.tell()
    if dtype.hasobject:
        raise FileError(f"{path} must hold numbers, got Python objects in {info.filename}")
    with open(path, "rb") as file:  # the length of names differs from that in the directory
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    start = info.header_offset + 30 + int(lengths.sum()) + before
    return _mapped(np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C"))


def _mapped(array: np.memmap) -> Source:
    return Source(np.asarray(array))  # slices of a plain view are several times faster


def _npz_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _zarr(path: Path, key: Key) -> Source:
    zarr = needed("zarr")
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Group):
        arrays = _zarr_arrays(found)
        found = arrays[_chosen(path, key, arrays)]
    else:
        _no_key(path, key)
    _check_codecs(path, found)
    attributes = dict(found.attrs)
    names = getattr(found.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    units = attributes.get("units")
    fill = attributes.get("_FillValue")
    return Source(
        KeptChunks(found),
        _names(names),
        units,
        fill,
        attributes,
        missing_chunks=lambda: found.nchunks - found.nchunks_initialized,
    )


def _check_codecs(path: Path, array: Any) -> None:
    """Raise if the chunks of a zarr array are pickles, which run code when they are read."""
    about = array.metadata
    codecs = [*(getattr(about, "codecs", None) or ()), *(getattr(about, "filters", None) or ())]
    codecs.append(getattr(about, "compressor", None))
    for codec in codecs:
        described = codec.to_dict() if hasattr(codec, "to_dict") else None
        name = described["name"] if described else getattr(codec, "codec_id", "")
        if "pickle" in str(name):
            raise FileError(f"{path} must not hold pickled chunks, got the codec {name!r}")


def _zarr_arrays(group: Any) -> dict[str, Any]:
    return {name: item for name, item in _members(group) if not hasattr(item, "members")}


def _members(group: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, item in group.members():
        yield f"{prefix}{name}", item
        if hasattr(item, "members"):
            yield from _members(item, f"{prefix}{name}/")


def _hdf5(path: Path, key: Key) -> Source:
    h5py = needed("h5py")
    file = h5py.File(path, "r")
    arrays = _hdf5_arrays(file)
    try:
        found = arrays[_chosen(path, key, arrays)]
    except FileError:
        file.close()
        raise
    attributes = dict(found.attrs)
    units = attributes.get("units")
    names = [dim.label for dim in found.dims]
    return Source(
        found,
        _names(names),
        units.decode() if isinstance(units, bytes) else units,
        _number(attributes.get("_FillValue")),
        attributes,
        file.close,
    )


def _hdf5_arrays(file: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    file.visititems(
        lambda name, item: arrays.update({name: item}) if hasattr(item, "shape") else None
    )
    return arrays


class _Variable:
    """A variable of xarray that gives plain arrays; scale, offset and fill value are applied."""

    def __init__(self, variable: Any) -> None:
        self.variable = variable
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.variable[index].values)


def _netcdf(path: Path, key: Key) -> Source:
    xarray = needed("xarray")
    data = xarray.open_dataset(path, decode_times=False, cache=False)
    fields = _netcdf_fields(data, with_bounds=key is not None)
    try:
        found = fields[_chosen(path, key, fields)]
    except FileError:
        data.close()
        raise
    coordinates = {name: found.coords[name].values for name in found.coords if name in found.dims}
    return Source(
        _Variable(found.variable),
        _names(found.dims),
        found.attrs.get("units"),
        None,
        {**found.attrs, "coordinates": coordinates},
        data.close,
        lambda: read_coordinates(data, found),
    )


def _netcdf_fields(data: Any, with_bounds: bool = False) -> dict[str, Any]:
    left_out = () if with_bounds else set(bounds_of(data))
    return {
        name: item for name, item in data.data_vars.items() if item.ndim and name not in left_out
    }


def _tiff(path: Path, key: Key) -> Source:
    tifffile, zarr = needed("tifffile"), needed("zarr")
    file = tifffile.TiffFile(path)
    levels = file.series[0].levels
    level = 0 if key is None else int(key) if isinstance(key, str) and key.isdecimal() else key
    if type(level) is not int or not 0 <= level < len(levels):
        file.close()
        raise FileError(
            f"key must be the number of one of {len(levels)} levels, got {shown(key)} for {path}"
        )
    series = levels[level]
    array = zarr.open(series.aszarr(), mode="r")
    if isinstance(array, zarr.Group):
        array = array["0"]
    about = {"levels": len(levels)}
    return Source(KeptChunks(array), tuple(series.axes), attributes=about, close=file.close)


def _stack(path: Path, key: Key) -> Source:
    _no_key(path, key)
    tifffile, zarr = needed("tifffile"), needed("zarr")
    files = sorted(file for file in path.iterdir() if KINDS.get(file.suffix.lower()) == "tiff")
    shapes = set()
    for name in (
        files[0],
        files[-1],
    ):  # an image between them of another size raises when it is read
        with tifffile.TiffFile(name) as file:
            shapes.add(file.series[0].shape)
    if len(shapes) > 1:
        raise FileError(f"{path} must hold images of one size, got {sorted(shapes)}")
    array = zarr.open(tifffile.TiffSequence(files).aszarr(), mode="r")
    return Source(KeptChunks(array), attributes={"files": len(files)})


class _Scaled:
    """The data of a NIfTI file as its header scales it."""

    def __init__(self, proxy: Any) -> None:
        self.proxy, self.shape = proxy, proxy.shape
        plain = proxy.slope == 1 and proxy.inter == 0
        self.dtype = proxy.dtype if plain else np.dtype("float64")

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.proxy[index])


def _nifti(path: Path, key: Key) -> Source:
    _no_key(path, key)
    image = needed("nibabel").load(path)
    names = tuple("xyzt"[: len(image.shape)])
    unit = image.header.get_xyzt_units()[0]
    spacing = tuple(float(n) for n in image.header.get_zooms())
    about = {"affine": image.affine, "spacing": spacing, "length_unit": unit}
    return Source(_Scaled(image.dataobj), _names(names), attributes=about)


READERS: dict[str, Callable[[Path, Key], Source]] = {
    "npy": _npy,
    "npz": _npz,
    "zarr": _zarr,
    "hdf5": _hdf5,
    "netcdf": _netcdf,
    "tiff": _tiff,
    "stack": _stack,
    "nifti": _nifti,
}


def keys_of(path: Path) -> list[str]:
    """Return the keys of a file of several arrays or levels; an empty list for one that has no keys."""
    kind = kind_of(path)
    if kind == "npz":
        with zipfile.ZipFile(path) as archive:
            return list(_npz_members(archive))
    if kind == "zarr":
        zarr = needed("zarr")
        found = zarr.open(path, mode="r")
        return sorted(_zarr_arrays(found)) if isinstance(found, zarr.Group) else []
    if kind == "hdf5":
        with needed("h5py").File(path, "r") as file:
            return list(_hdf5_arrays(file))
    if kind == "netcdf":
        with needed("xarray").open_dataset(path, decode_times=False, cache=False) as data:
            return list(_netcdf_fields(data))
    if kind == "tiff":
        with needed("tifffile").TiffFile(path) as file:
            return [str(level) for level in range(len(file.series[0].levels))]
    return []


def _chosen(path: Path, key: Key, arrays: Mapping[str, Any]) -> str:
    """Return the key, or that of the only array; raise with the keys that there are."""
    if key is None and len(arrays) == 1:
        return next(iter(arrays))
    if key not in arrays:
        sizes = {name: getattr(array, "shape", "") for name, array in arrays.items()}
        known = ", ".join(f"{name!r} {size}".strip() for name, size in sorted(sizes.items()))
        raise FileError(f"key must be one of {known or None} in {path}, got {shown(key)}")
    return str(key)


def _no_key(path: Path, key: Key) -> None:
    if key is not None:
        raise FileError(f"key must be None for {path}, which holds one array, got {shown(key)}")


def _names(names: Any) -> tuple[str, ...] | None:
    return tuple(str(name) for name in names) if names and any(names) else None


def _number(value: Any) -> float | None:
    return None if value is None else float(np.asarray(value).reshape(-1)[0])


def needed(package: str) -> Any:
    """Return a package of the extra `io`."""
    try:
        return __import__(package)
    except ImportError as error:
        raise ImportError(f"this file needs {package}: pip install 'neurenix_ms[io]'") from error


def state_of(path: Path, most: int | None = MOST_FILES) -> tuple[int, int, str]:
    """Return what changes when a file, or a file in a folder, is written to, added or removed.

    Args:
        path: A file or folder.
        most: Largest number of files of a folder that are checked; None checks all.

    Returns:
        The size, the time of the last change, and for a folder a checksum of names, sizes and times.
    """
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size, found.st_mtime_ns, ""
    size, last, total = 0, 0, hashlib.sha256()
    for file in itertools.islice(files_in(path), most):
        with contextlib.suppress(FileNotFoundError):  # removed since its folder was listed
            one, name = os.stat(file), file[len(os.fspath(path)) :]
            size, last = size + one.st_size, max(last, one.st_mtime_ns)
            total.update(f"{name}\0{one.st_size}\0{one.st_mtime_ns}\0".encode(errors="replace"))
    return size, last, total.hexdigest()[:32]


def files_in(folder: Path) -> Iterator[str]:
    """Yield the paths of all files in a folder and the folders in it, in the order of their names."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(names))


def number_dtype(name: str, value: Any) -> np.dtype:
    """Return a type of numbers or booleans of NumPy.

    Raises:
        ValueError: If there is no such type, or it holds something else.
    """
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError, SyntaxError) as error:  # the last two of a text with commas
        raise FileError(f"{name} must be a type of NumPy, got {shown(value)} ({error})") from None
    if value is None or dtype.kind not in "biufc":
        raise FileError(f"{name} must be a type of numbers or booleans, got {shown(value)}")
    return dtype


def unmap(array: Any) -> None:
    """Give back the memory that a file mapped into memory occupies; what is written stays."""
    owner = array if isinstance(array, np.memmap) else getattr(array, "base", None)
    mapped = getattr(owner, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
