"""Forecast the states of a file by a time-stepper, and write the forecast to a file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms.datasets import open_array
from neurenix_ms.datasets.writers import writable_kind, write_whole
from neurenix_ms.prediction.grids import said_of_states, time_step_of
from neurenix_ms.prediction.results import check_apart
from neurenix_ms.sharing.reading import read_network


@checked
def forecast_file(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    num_steps: int,
    *,
    row: int | None = None,
    key: str | None = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    offset: int = 0,
    time_step: float | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> tuple[int, ...]:
    """Forecast the states of a file by a time-stepper, and write the forecast to a file.

    Use it for a `HierarchicalTimeStepper` or a `TimeStepper`, as `neurenix-ms predict` does. States and
    forecast are kept in memory. The target appears when it is complete.

    From NetCDF to NetCDF, the forecast has the unit and the coordinates of the source, and the times
    after that of `row`, if the times of the source are equally spaced. A step of the model is then a
    time step of the source.

    Args:
        model: A file of `save` or a folder of `save_pretrained`.
        source: Initial states `(B, *D)`, in a format of `open_array`; or with `row`, trajectories
            `(B, T, *D)`.
        target: Where the forecast `(B, num_steps, *D)` goes, in a format of `create_array`.
        num_steps: Number of steps.
        row: Time step of the trajectories from which the forecast starts; -1 is the last.
        key: Name of the array in a file with several arrays.
        shape: Shape of a raw binary source.
        dtype: Type of a raw binary source, with a byte order, such as ">u2".
        offset: Number of bytes before the values in a raw binary source.
        time_step: Length of a step of the model in the unit of the source's time; by default, with
            `row`, that of the source.
        device: Device of the model.
        overwrite: Replace an existing target.

    Returns:
        The shape of the forecast.

    Raises:
        ValueError: If a file cannot be read, the model is not a time-stepper, the states do not fit it,
            or `target` exists or would replace `source` or `model`.

    Examples:
        >>> import tempfile
        >>> from neurenix_ms import create, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(create("time_stepper"), f"{folder}/model.nx")
        ...     np.save(f"{folder}/states.npy", np.zeros((5, 2)))
        ...     forecast_file(
        ...         f"{folder}/model.nx", f"{folder}/states.npy", f"{folder}/next.npy", num_steps=8
        ...     )
        (5, 8, 2)
    """
    check_integer("num_steps", num_steps, 1)
    check_apart(target, model, source)
    check_free(Path(target), overwrite)
    writable_kind(Path(target))
    network: Any = read_network(model, device)
    if not hasattr(network, "forecast"):
        raise ValueError(f"model must make forecasts, got a {type(network).__name__}")
    opened = open_array(source, key, shape=shape, dtype=dtype, offset=offset)
    states = _started(np.asarray(opened[...]), row, Path(source))
    if time_step is not None:
        time_step_of(opened, time_step, Path(target))
    said = said_of_states(opened, row, num_steps, time_step)
    kinds = [p.dtype for p in network.parameters()] or [torch.float32]
    with torch.no_grad():
        try:
            found = network.forecast(torch.from_numpy(states).to(device, kinds[0]), num_steps)
        except RuntimeError as error:  # of a product of matrices that do not fit
            words = str(error).partition("\n")[0]
            raise ValueError(
                f"{source} must hold states that the model takes, got {states.shape}: {words}"
            ) from error
    said_there = said.arguments(Path(target))
    write_whole(Path(target), found.cpu().numpy(), True, **said_there)
    return tuple(found.shape)


def _started(array: np.ndarray, row: int | None, source: Path) -> np.ndarray:
    """Return the initial states."""
    least = 2 if row is None else 3
    if array.ndim < least:
        wanted = "(states, features)" if row is None else "(trajectories, time, features)"
        raise ValueError(f"{source} must have the axes {wanted}, got shape {array.shape}")
    if row is None:
        return np.array(array)
    if not -array.shape[1] <= row < array.shape[1]:
        raise ValueError(f"row must be one of {array.shape[1]} time steps, got {row}")
    return np.array(array[:, row])


def check_free(target: Path, overwrite: bool) -> None:
    """Raise if something is at a target that must not be replaced, or its folder is missing."""
    if target.exists() and not overwrite:
        raise ValueError(
            f"target must be free, got {target}, which exists; pass overwrite (--overwrite) to "
            "replace it"
        )
    if not target.parent.is_dir():
        raise ValueError(f"target must be in a folder that exists, got {target}")
