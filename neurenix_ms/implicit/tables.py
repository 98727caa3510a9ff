"""Columns of numbers in tables and meshes on disk: CSV, Parquet, VTK."""

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurenix_ms._core.io.atomic import replacing, replacing_path, write_atomically

MESHES = (".vtk", ".vtu", ".xdmf")
KINDS = {".csv": "csv", ".parquet": "parquet", **dict.fromkeys(MESHES, "mesh")}
AXES = ("x", "y", "z")
Columns = dict[str, np.ndarray]


def kind_of(path: Path) -> str:
    """Return how a file of columns is read, by its ending."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path must have an ending of one of {sorted(KINDS)}, got {path}")
    return kind


def read_columns(path: Path, names: Sequence[str]) -> Columns:
    """Return columns of a table, or coordinates (x, y, z) and point data of a mesh.

    Args:
        path: A file of numbers with names, in `.csv`, `.parquet`, `.vtk`, `.vtu` or `.xdmf`.
        names: Names of the columns.

    Raises:
        ValueError: If the file is missing or corrupted, or has no column of a name.
        ImportError: If its reader is missing.
    """
    kind = kind_of(path)
    if not path.is_file():
        raise ValueError(f"path must be a file that exists, got {path}")
    return READERS[kind](path, names)


def stacked(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> torch.Tensor:
    """Return columns side by side, `(N, len(names))`."""
    return torch.from_numpy(np.stack([columns[name] for name in names], axis=1))


def needed(name: str, path: Path) -> Any:
    """Import a reader or writer."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{path.name} needs {package}: pip install 'neurenix_ms[io]'") from error


def check_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless a file has columns of all names."""
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"{path} must have the columns {list(names)}, got no {missing} in {list(known)}"
        )


def _csv(path: Path, names: Sequence[str]) -> Columns:
    with open(path, newline="", encoding="utf-8-sig") as file:
        head = [name.strip() for name in next(csv.reader(file), [])]
    check_names(path, names, head)
    wanted = [head.index(name) for name in names]
    try:
        rows = np.loadtxt(
            path,
            delimiter=",",
            skiprows=1,
            usecols=wanted,
            ndmin=2,
            encoding="utf-8-sig",
            quotechar='"',
            converters=_number,
        )
    except ValueError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{path} must hold numbers in {list(names)}, got: {words}") from error
    return {name: rows[:, i] for i, name in enumerate(names)}


def _number(text: str) -> float:
    """Return the number of a field; an empty one is missing."""
    text = text.strip()
    return float(text) if text else float("nan")


def _parquet(path: Path, names: Sequence[str]) -> Columns:
    parquet = needed("pyarrow.parquet", path)
    try:
        check_names(path, names, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=list(names))
        return {name: np.asarray(table.column(name).to_numpy(), "float64") for name in names}
    except ValueError as error:
        if "must have" in str(error):
            raise
        words = " ".join(str(error).split())
        raise ValueError(f"{path} must be a Parquet file of numbers, got: {words}") from error


def read_mesh(path: Path) -> Any:
    """Return the mesh of a file, as meshio has it."""
    meshio = needed("meshio", path)
    try:
        return meshio.read(path)
    except (
        Exception,
        SystemExit,
    ) as error:  # meshio ends the process at a file that it cannot read
        words = " ".join(str(error).split())
        raise ValueError(f"{path} must be a mesh that meshio reads, got: {words}") from error


def _mesh(path: Path, names: Sequence[str]) -> Columns:
    mesh = read_mesh(path)
    known: Columns = {AXES[i]: mesh.points[:, i] for i in range(mesh.points.shape[1])}
    for name, values in mesh.point_data.items():
        values = np.asarray(values)
        if values.ndim == 1:
            known[name] = values
        else:
            known |= {f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
    check_names(path, names, list(known))
    return {name: np.asarray(known[name], "float64") for name in names}


READERS = {"csv": _csv, "parquet": _parquet, "mesh": _mesh}


def write_columns(
    path: Path, columns: Mapping[str, np.ndarray], source: Path | None = None
) -> None:
    """Write columns to a table, or as point data to a copy of a mesh, atomically.

    Args:
        path: Where they go; the ending says the format.
        columns: Numbers by name.
        source: The mesh, if the ending is that of a mesh.

    Raises:
        ValueError: If there is no mesh to copy, or the ending is unknown.
        ImportError: If the writer is missing.
    """
    kind = kind_of(path)
    if kind == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        write_atomically(path, text.getvalue().encode())
    elif kind == "parquet":
        arrow, parquet = needed("pyarrow", path), needed("pyarrow.parquet", path)
        with replacing(path) as file:
            parquet.write_table(arrow.table(dict(columns)), file)
    else:
        _write_mesh(path, columns, source)


def _write_mesh(path: Path, columns: Mapping[str, np.ndarray], source: Path | None) -> None:
    if source is None or kind_of(source) != "mesh":
        raise ValueError(f"{path} must be a table (.csv, .parquet) unless the input is a mesh")
    mesh = read_mesh(source)
    for name, values in columns.items():
        if name not in AXES:
            mesh.point_data[name] = values
    with replacing_path(path) as temporary:
        mesh.write(temporary)
