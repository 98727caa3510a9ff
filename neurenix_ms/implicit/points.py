"""Values of a field at scattered points, read from tables and meshes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_number
from neurenix_ms.implicit.tables import Columns, read_columns, stacked

Rows = tuple[Tensor, Tensor, Tensor]


class PointCloud(Dataset[Rows]):
    """Rows of parameters, a point and the values of a field there.

    Use it to train an implicit field on a simulation or on measurements, whose points may be those of
    any mesh and may differ for every time. `Normalizer.fit(cloud.p, cloud.x, cloud.u)` computes the
    scales. `PointCloud.read` reads tables and meshes. All rows are kept in memory.

    Args:
        p: Parameters of every row, such as the time.
        x: Coordinates.
        u: Values.

    Shape:
        p `(N, P)`, x `(N, d)`, u `(N, out)`; an item is a row of each, or several rows for a list or
        tensor of numbers

    Raises:
        ValueError: If the tensors have another rank or different lengths, are empty, or hold NaN.

    Examples:
        >>> cloud = PointCloud(torch.zeros(5, 1), torch.rand(5, 2), torch.ones(5, 3))
        >>> len(cloud), [one.shape for one in cloud[torch.tensor([0, 4])]]
        (5, [torch.Size([2, 1]), torch.Size([2, 2]), torch.Size([2, 3])])
    """

    @checked
    def __init__(self, p: Tensor, x: Tensor, u: Tensor) -> None:
        for name, value in (("p", p), ("x", x), ("u", u)):
            if value.ndim != 2 or len(value) == 0:
                raise ValueError(
                    f"{name} must have shape (N, columns) with a row or more, got {tuple(value.shape)}"
                )
        if not len(p) == len(x) == len(u):
            raise ValueError(
                f"p, x and u must have equal lengths, got {len(p)}, {len(x)}, {len(u)}"
            )
        for name, value in (("p", p), ("x", x), ("u", u)):
            bad = ~value.isfinite()
            if bad.any():
                row, column = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} must be finite, got {int(bad.sum())} numbers that are not, the first in "
                    f"row {row}, column {column}"
                )
        self.p, self.x, self.u = p, x, u

    @classmethod
    @checked
    def read(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        coordinates: Sequence[str],
        values: Sequence[str],
        parameters: Sequence[str] = (),
        parameter_values: Sequence[Sequence[float]] | None = None,
        drop_missing: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> "PointCloud":
        """Read the rows of one file or several.

        Args:
            path: `.csv` with names in its first line, `.parquet` (by pyarrow), `.vtk`, `.vtu` or `.xdmf`
                (by meshio), or a list of such files.
            coordinates: Names of the columns of coordinates; x, y and z of a mesh.
            values: Names of the columns of values; of a mesh, names of its point data. Component i of a
                vector `v` is `v_i`.
            parameters: Names of the columns of parameters. Without any, there is one that is 0.
            parameter_values: Parameters of every file, in place of columns, such as its time.
            drop_missing: Drop rows with NaN instead of raising an error.
            dtype: Type of the tensors.

        Raises:
            ValueError: If a file is missing, corrupted or has no such column, a number is missing, or
                there are not parameters for every file.
            ImportError: If the reader of a file is missing (the extra `io`).

        Examples:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     text = "t,x,y,pressure\\n0,0.0,1.0,2.5\\n1,0.5,1.0,2.0\\n"
            ...     size = Path(f"{folder}/run.csv").write_text(text)
            ...     cloud = PointCloud.read(
            ...         f"{folder}/run.csv",
            ...         parameters=["t"],
            ...         coordinates=["x", "y"],
            ...         values=["pressure"],
            ...     )
            >>> cloud.p.tolist(), cloud.x.tolist(), cloud.u.tolist()
            ([[0.0], [1.0]], [[0.0, 1.0], [0.5, 1.0]], [[2.5], [2.0]])
        """
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        _check_parameters(paths, parameters, parameter_values)
        for name, columns in (("coordinates", coordinates), ("values", values)):
            if not columns:
                raise ValueError(f"{name} must name a column or more, got none")
        names = [*parameters, *coordinates, *values]
        parts = []
        for i, file in enumerate(paths):
            rows = _kept(Path(file), read_columns(Path(file), names), drop_missing)
            given = None if parameter_values is None else parameter_values[i]
            parts.append(_rows(rows, parameters, coordinates, values, given, dtype))
        p, x, u = (torch.cat(some) for some in zip(*parts, strict=True))
        return cls(p, x, u)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int | Tensor | list[int]) -> Rows:
        return self.p[index], self.x[index], self.u[index]

    @checked
    def split(self, part: float, *, seed: int = 0) -> tuple["PointCloud", "PointCloud"]:
        """Return most rows, and a random part of them that is held out.

        Args:
            part: Ratio of the rows in the second cloud, above 0 and below 1.
            seed: Seed of the choice.
        """
        check_number("part", part, above=0, below=1)
        count = min(max(1, round(part * len(self))), len(self) - 1)
        if count == 0:
            raise ValueError(f"a cloud must have two rows to be split, got {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return PointCloud(*self[order[count:]]), PointCloud(*self[order[:count]])


def _check_parameters(
    paths: Sequence[object], names: Sequence[str], given: Sequence[Sequence[float]] | None
) -> None:
    if not paths:
        raise ValueError("path must be one file or more, got an empty list")
    if given is None:
        return
    if names:
        raise ValueError(f"parameters must be columns or parameter_values, got both: {list(names)}")
    if len(given) != len(paths) or len({len(one) for one in given}) != 1 or not given[0]:
        raise ValueError(
            f"parameter_values must hold as many numbers for each of {len(paths)} files, got "
            f"{[list(one) for one in given]}"
        )


def _kept(path: Path, columns: Columns, drop_missing: bool) -> Columns:
    """Return the rows without missing numbers; raise if there are others and they are not dropped."""
    missing = {name: ~np.isfinite(values) for name, values in columns.items()}
    rows = np.logical_or.reduce(list(missing.values()))
    if not rows.any():
        return columns
    if drop_missing:
        return {name: values[~rows] for name, values in columns.items()}
    first = int(rows.argmax())
    named = [name for name, some in missing.items() if some[first]]
    raise ValueError(
        f"{path} must have a number everywhere, got {int(rows.sum())} of {len(rows)} rows without "
        f"one, the first is row {first} at {named}; drop_missing leaves them out"
    )


def _rows(
    columns: Columns,
    parameters: Sequence[str],
    coordinates: Sequence[str],
    values: Sequence[str],
    given: Sequence[float] | None,
    dtype: torch.dtype,
) -> Rows:
    """Return parameters, coordinates and values of a file."""
    x, u = stacked(columns, coordinates).to(dtype), stacked(columns, values).to(dtype)
    if parameters:
        return stacked(columns, parameters).to(dtype), x, u
    row = torch.tensor([list(given or [0.0])], dtype=dtype)
    return row.expand(len(x), -1).clone(), x, u
