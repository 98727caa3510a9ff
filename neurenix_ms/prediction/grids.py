"""What the file of a result says beside its values: axes, coordinates, units, and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.coordinates import Coordinate, is_time
from neurenix_ms.datasets.readers import kind_of

EQUAL = 1e-3  # relative difference up to which time steps are equal


@dataclass(frozen=True)
class Said:
    """What a result's file says; see `create_array`.

    Args:
        axes: Names of the axes.
        units: Unit of the values.
        coordinates: Coordinates by name.
        attributes: Attributes of the values.
    """

    axes: list[str] | None = None
    units: str | None = None
    coordinates: Mapping[str, Coordinate] | None = None
    attributes: Mapping[str, Any] | None = None

    def arguments(self, target: Path) -> dict[str, Any]:
        """Return the arguments of `create_array` for a file, which may hold no coordinates."""
        if kind_of(target) != "netcdf":
            return {"axes": self.axes, "units": self.units}
        return vars(self)


def time_step_of(images: DiskArray, given: float | None, target: Path) -> float | None:
    """Return the time step of a forecast: the one that is given, or that the source names.

    Raises:
        ValueError: If one is given, and the source has no time or the target cannot hold one.
    """
    if given is None:
        said = images.attributes.get("forecast_step")
        return None if said is None or not times_of(images.coordinates) else float(said)
    if kind_of(target) != "netcdf":
        raise ValueError(f"time_step needs a target that ends in .nc, got {target}")
    if not times_of(images.coordinates):
        raise ValueError(
            f"time_step needs a source with a coordinate of time, got {images.path} with "
            f"{list(images.coordinates) or 'none'}"
        )
    return given


def times_of(coordinates: Mapping[str, Coordinate]) -> list[str]:
    """Return the names of the coordinates that are times."""
    return [name for name, one in coordinates.items() if is_time(name, one)]


def said_of_images(
    images: DiskArray,
    axes: list[str] | None,
    shape: Sequence[int],
    time_step: float | None,
    units: str | None,
    target: Path,
) -> Said:
    """Return what is said of a prediction.

    Args:
        images: The source, with the axes `(B, C, *S)`.
        axes: Names of the axes of the result.
        shape: Its shape.
        time_step: By how much the result is later than the source, if that is known.
        units: Unit of the values, if it is given.
        target: Where the result goes; coordinates are read only if it can hold them.
    """
    if units is None:
        units = images.attributes.get("forecast_units")
        units = images.units if units is None and time_step is not None else units
    if axes is None or kind_of(target) != "netcdf" or not (known := images.coordinates):
        return Said(axes, units)
    if time_step is not None:
        frames = images.axes[1] if images.axes else None
        lengths = dict(zip(axes, shape, strict=True))
        known = {**known, **later(known, time_step, {str(frames): lengths.get(str(frames), 0)})}
    return Said(axes, units, *_kept(images, known, axes, shape))


def later(
    coordinates: Mapping[str, Coordinate], step: float, following: Mapping[str, int]
) -> dict[str, Coordinate]:
    """Return the coordinates of time, later by a step, and their bounds.

    Args:
        coordinates: All coordinates.
        step: The step.
        following: Axes along which the result holds the times after the last one, and their number.
    """
    found = {}
    for name in times_of(coordinates):
        dims, values, about = coordinates[name]
        bounds = str(about.get("bounds"))
        if len(dims) == 1 and dims[0] in following:
            after = values[-1] + _plain(step) * np.arange(1, following[dims[0]] + 1)
            found[name] = Coordinate(dims, after, {k: v for k, v in about.items() if k != "bounds"})
            continue
        found[name] = Coordinate(dims, values + _plain(step), about)
        if bounds in coordinates:
            found[bounds] = coordinates[bounds]._replace(
                values=coordinates[bounds].values + _plain(step)
            )
    return found


def said_of_states(
    array: DiskArray, row: int | None, num_steps: int, time_step: float | None
) -> Said:
    """Return what is said of a forecast of states.

    Args:
        array: The source: `(B, *D)`, or with `row` `(B, T, *D)`.
        row: Time step at which the forecast starts.
        num_steps: Number of steps of the forecast.
        time_step: Length of a step; None for that of the source, which must be regular.
    """
    if array.axes is None:
        return Said(None, array.units)
    names, known = [str(name) for name in array.axes], array.coordinates
    times = times_of(known)
    if row is not None:
        axis = names[1]
        start = known[axis].values if axis in times else np.zeros(0)
        step = _regular(start) if time_step is None else time_step
        first = start[row] if start.size else None
    else:
        scalars = [name for name in times if not known[name].dims]
        axis = scalars[0] if scalars else "time" if "time" not in names else "step"
        step = time_step
        first = known[axis].values[()] if scalars else None
        names.insert(1, axis)
    about = known[axis].attributes if axis in known else {}
    known = {name: one for name, one in known.items() if name != axis}
    if step is not None and first is not None:
        after = first + _plain(step) * np.arange(1, num_steps + 1)
        known[axis] = Coordinate((axis,), after, {k: v for k, v in about.items() if k != "bounds"})
    shape = [*array.shape[:1], num_steps, *array.shape[1 if row is None else 2 :]]
    return Said(names, array.units, *_kept(array, known, names, shape))


def _kept(
    array: DiskArray,
    known: Mapping[str, Coordinate],
    axes: Sequence[str],
    shape: Sequence[int],
) -> tuple[dict[str, Coordinate], dict[str, Any]]:
    """Return the coordinates of axes whose length is that in the source, and what names a projection."""
    before = {str(name) for name in array.axes or ()}
    after = dict(zip(axes, shape, strict=True))
    kept = {
        name: one
        for name, one in known.items()
        if all(
            after.get(dim, -1 if dim in before else length) == length
            for dim, length in zip(one.dims, one.values.shape, strict=True)
        )
    }
    bounds = {one.attributes.get("bounds") for one in known.values()}
    wanted = {one.attributes.get("bounds") for one in kept.values()}
    kept = {name: one for name, one in kept.items() if name not in bounds or name in wanted}
    projection = array.attributes.get("grid_mapping")
    return kept, {"grid_mapping": projection} if projection in kept else {}


def _regular(times: np.ndarray) -> float | None:
    """Return the step of equal time steps; None for others."""
    steps = np.diff(times)
    if not steps.size or not np.allclose(steps, steps[0], rtol=EQUAL, atol=0):
        return None
    return float(steps.mean())


def _plain(step: float) -> float | int:
    """Return an integer where the step is one, so that integers stay integers."""
    return int(step) if float(step).is_integer() else step
