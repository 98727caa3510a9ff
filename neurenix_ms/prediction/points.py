"""Evaluate an implicit field at the points of a table or mesh."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurenix_ms._core.arguments import checked
from neurenix_ms.implicit.tables import read_columns, stacked, write_columns
from neurenix_ms.prediction.forecasts import check_free
from neurenix_ms.prediction.results import check_apart
from neurenix_ms.sharing.reading import read_network

CHUNK = 100_000  # points at a time


@checked
def evaluate_file(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    coordinates: Sequence[str],
    values: Sequence[str],
    parameters: Sequence[str] = (),
    parameter_values: Sequence[float] | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> int:
    """Evaluate an implicit field at the points of a file, and write the values with them.

    Use it for a field that was trained on a `PointCloud`, as `neurenix-ms predict` does. The target
    appears when it is complete.

    Args:
        model: A file of `save` or a folder of `save_pretrained`.
        source: Points in `.csv`, `.parquet`, `.vtk`, `.vtu` or `.xdmf`.
        target: A table, `.csv` or `.parquet`, of parameters, coordinates and values; or a mesh, if the
            source is one, with the values as point data.
        coordinates: Names of the columns of coordinates; x, y and z of a mesh.
        values: Names that the values get.
        parameters: Names of the columns of parameters.
        parameter_values: One set of parameters for all points, in place of columns.
        device: Device of the model.
        overwrite: Replace an existing target.

    Returns:
        The number of points.

    Raises:
        ValueError: If a file cannot be read, a number is missing, the names do not fit the field, or
            `target` exists or would replace `source` or `model`.
        ImportError: If a reader is missing (the extra `io`).

    Examples:
        >>> import tempfile
        >>> from neurenix_ms import create, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(create("normalized_nif"), f"{folder}/model.nx")
        ...     size = Path(f"{folder}/points.csv").write_text("x,y\\n0.0,0.5\\n1.0,0.5\\n")
        ...     evaluate_file(
        ...         f"{folder}/model.nx",
        ...         f"{folder}/points.csv",
        ...         f"{folder}/values.csv",
        ...         coordinates=["x", "y"],
        ...         values=["u"],
        ...         parameter_values=[0.5],
        ...     )
        2
    """
    check_apart(target, model, source)
    check_free(Path(target), overwrite)
    field: Any = read_network(model, device)
    inner = getattr(field, "model", field)
    for name, given, wanted in (
        ("coordinates", coordinates, getattr(inner, "coordinate_dim", None)),
        ("values", values, getattr(inner, "out_channels", None)),
        (
            "parameters",
            parameter_values or parameters or [0],
            getattr(inner, "parameter_dim", None),
        ),
    ):
        if wanted is None:
            raise ValueError(f"model must be an implicit field, got a {type(field).__name__}")
        if len(given) != wanted:
            raise ValueError(f"{name} must be {wanted} for this field, got {list(given)}")
    columns = read_columns(Path(source), [*parameters, *coordinates])
    for name, column in columns.items():
        if not np.isfinite(column).all():
            row = int((~np.isfinite(column)).argmax())
            raise ValueError(
                f"{source} must have a number everywhere, got none in row {row} of {name}"
            )
    x = stacked(columns, coordinates)
    rows = parameter_values if parameter_values is not None else [0.0]
    p = (
        stacked(columns, parameters)
        if parameters
        else torch.tensor([list(rows)]).expand(len(x), -1)
    )
    kinds = [value.dtype for value in field.parameters()] or [torch.float32]
    with torch.no_grad():
        found = field(p.to(device, kinds[0]), x.to(device, kinds[0]), chunk_size=CHUNK).cpu()
    points = {name: columns[name] for name in (*parameters, *coordinates)}
    made = {name: found[:, i].numpy() for i, name in enumerate(values)}
    write_columns(Path(target), points | made, Path(source))
    return len(x)
