"""Coordinates of an array on disk, such as latitude, longitude and time, with their attributes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Coordinate(NamedTuple):
    """Values along one or more axes of an array, or a single value, in the form that xarray takes.

    Args:
        dims: Names of its axes; none for a single value.
        values: The values.
        attributes: What the file says about them, such as their unit.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: Mapping[str, Any]


def read_coordinates(data: Any, found: Any) -> dict[str, Coordinate]:
    """Return the coordinates of a variable of xarray, their bounds, and its map projection.

    Args:
        data: The dataset.
        found: One of its variables.
    """
    names = [str(name) for name in found.coords]
    names += [name for name in bounds_of(data) if set(data[name].dims) & set(found.dims)]
    projection = found.attrs.get("grid_mapping")
    if projection in data.variables:
        names.append(projection)
    return {
        name: Coordinate(
            tuple(str(dim) for dim in data[name].dims), data[name].values, dict(data[name].attrs)
        )
        for name in dict.fromkeys(names)
    }


def bounds_of(data: Any) -> list[str]:
    """Return the names of the variables that hold the bounds of cells (CF conventions, 7.1)."""
    named = [data[name].attrs.get("bounds") for name in data.variables]
    return [name for name in named if name in data.variables]


def is_time(name: str, coordinate: Coordinate) -> bool:
    """Return whether a coordinate is time, by the CF conventions (4.4) or by its name."""
    about = coordinate.attributes
    if coordinate.values.dtype.kind not in "iuf":
        return False
    if "standard_name" in about:  # also of the time at which another forecast has started
        return bool(about["standard_name"] == "time")
    since = " since " in str(about.get("units", ""))
    return since or about.get("axis") == "T" or name.lower() == "time"
