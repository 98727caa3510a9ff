"""Maps of a density over time: windows of a file as data, and the task that conserves their mass."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from neurenix_ms._core.checks import check_integer
from neurenix_ms.conservation import total_mass
from neurenix_ms.datasets import open_array
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.coordinates import Coordinate
from neurenix_ms.datasets.writers import write_whole
from neurenix_ms.fitting.loading import FitData, num_held_out
from neurenix_ms.fitting.tasks import Arguments, FitTask, as_in_the_data, optimizer_named
from neurenix_ms.registry import create
from neurenix_ms.training import RegressionTask
from neurenix_ms.transport import MassConserving

SCALED_MAPS = 64  # maps from which the scales are computed, at most
IN_MEMORY = 2**28  # bytes; slices of NetCDF files take milliseconds each
MISSED = 1.5  # ratio of time steps from which one is missing; months have 28 to 31 days


class Steps(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a few steps in samples of density and fields.

    Args:
        arrays: The density and the fields, each `(N, T, *S)`; slices are read when they are needed.
        places: Sample and first time of every window.
        unroll: Steps of a window.
        cells: Area of every cell, 0 on land, as the first field of every step; None for none.

    Shape:
        an item is the input `(1 + F * unroll, *S)`, density and fields of every step, and the densities
        after it `(unroll, *S)`
    """

    def __init__(
        self,
        arrays: list[Any],
        places: list[tuple[int, int]],
        unroll: int,
        cells: Tensor | None = None,
    ) -> None:
        self.arrays, self.places, self.unroll, self.cells = arrays, places, unroll, cells

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        sample, first = self.places[index]
        rows = slice(first, first + self.unroll + 1)
        density, *fields = (self._read(array, sample, rows) for array in self.arrays)
        # the fields of a step are the mean of those at its beginning and its end
        means = [(one[:-1] + one[1:]) / 2 for one in fields]
        if self.cells is not None:
            means.insert(0, self.cells.expand_as(density[1:]))
        driving = torch.stack(means, dim=1).flatten(0, 1) if means else density[:0]
        return torch.cat([density[:1], driving]), density[1:]

    def _read(self, array: Any, sample: int, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(array[sample, rows], "float32"))


class _AtSea:
    """An array `(N, T, *S)` that is 0 on land, and must have values elsewhere.

    Args:
        array: The array, with NaN where a value is missing.
        land: Cells of land `(*S)`.
        fill: What replaces values that are missing at sea; None raises an error.
        path: Its file, for the message.
    """

    def __init__(self, array: Any, land: np.ndarray, fill: float | None, path: Any) -> None:
        self.array, self.land, self.fill, self.path = array, land, fill, path

    def __getitem__(self, index: tuple[int, slice]) -> np.ndarray:
        values = np.array(self.array[index])
        values[..., self.land] = 0
        missing = np.isnan(values)
        if missing.any():
            if self.fill is None:
                time, *place = np.argwhere(missing)[0].tolist()
                raise ValueError(
                    f"{self.path} must have values at sea, got {int(missing.sum())} missing ones in "
                    f"{len(values)} time steps, the first in step {index[1].start + time} at "
                    f"{tuple(place)}, where the density has one at the first time; "
                    "--data.reading='{fill: 0}' replaces them"
                )
            values[missing] = self.fill
        return values


class DensityMaps(FitData):
    """Maps of a density and of the fields that drive it, at equal time steps, for `Density`.

    Use it for ocean fields, such as tracers or drifting plastic, with the currents as fields. The last
    samples are held out; of a single one, its last time steps. Files of more than 256 MiB in total are
    read window by window, others as a whole.

    With land, or with cells of unequal area, the first field of every step is the area of every cell,
    in units of the largest, and 0 on land. `Density` takes the mass from it: the density there must be
    per area.

    Args:
        density: File of the density, `(T, *S)` or `(N, T, *S)`.
        fields: Files of the fields, such as the two components of a current, with the same axes; a file
            can be named twice.
        density_key: Name of the density in a file with several arrays.
        field_keys: Names of the fields.
        num_samples: "one" for `(T, *S)`, "many" for `(N, T, *S)`.
        reading: Further arguments of `open_array` for all files; fill replaces missing values.
        land: "missing" takes the cells for land in which the density is missing at the first time;
            "none" if there is no land.
        areas: "latitude" for areas by the cosine of the latitude, of a NetCDF file with a coordinate lat
            or latitude; "equal" for cells of one area.
        unroll: Steps of a window, for which the network is rolled out in training.
        batch_size: Windows of a batch.
        num_workers: Number of data loader processes.
        validation: Fraction of the data that is held out.
        seed: Seed of the order.

    Raises:
        ValueError: If a file is not usable, the files have different shapes, there are too few time
            steps or some are missing; for an item, if a value is missing at sea.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/density.npy", np.ones((9, 16, 12)))
        ...     data = DensityMaps(f"{folder}/density.npy", validation=0.4)
        ...     x, after = data.sets[0][0]
        >>> x.shape, after.shape
        (torch.Size([1, 16, 12]), torch.Size([1, 16, 12]))
    """

    def __init__(
        self,
        density: str,
        fields: list[str] | None = None,
        *,
        density_key: str | None = None,
        field_keys: list[str] | None = None,
        num_samples: Literal["one", "many"] = "one",
        reading: dict[str, Any] | None = None,
        land: Literal["none", "missing"] = "none",
        areas: Literal["equal", "latitude"] = "equal",
        unroll: int = 1,
        batch_size: int = 8,
        num_workers: int = 0,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, validation, seed)
        self.density = density
        self.fields = list(fields or [])
        self.density_key = density_key
        self.field_keys = [None] * len(self.fields) if field_keys is None else list(field_keys)
        if len(self.field_keys) != len(self.fields):
            raise ValueError(
                f"field_keys must be one for each of {len(self.fields)} fields, got {field_keys}"
            )
        self.num_samples = num_samples
        self.reading = dict(reading or {})
        self.land, self.areas = land, areas
        self.unroll = check_integer("unroll", unroll, 1)

    @property
    def has_cells(self) -> bool:
        """Whether the first field of a step is the area of the cells."""
        return self.land != "none" or self.areas != "equal"

    @property
    def num_fields(self) -> int:
        """Number of fields of a step."""
        return len(self.fields) + self.has_cells

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Open the files, and return the windows to train on and those held out."""
        files = [(self.density, self.density_key), *zip(self.fields, self.field_keys, strict=True)]
        reading = {**self.reading, "fill": "keep"} if self.land == "missing" else self.reading
        opened = [open_array(path, key, **reading) for path, key in files]
        shape = opened[0].shape
        for array in opened:
            if array.shape != shape:
                raise ValueError(
                    f"fields must have the shape {shape} of the density, got {array.shape} in "
                    f"{array.path}"
                )
        if self.land == "missing":
            for array in opened:
                if array.dtype.kind != "f":
                    raise ValueError(
                        f"land='missing' needs numbers with NaN or a fill value, got {array.dtype} in "
                        f"{array.path}"
                    )
                array.fill = np.nan  # before anything is read, for a fill value that the file names
        size = sum(array.dtype.itemsize * math.prod(shape) for array in opened)
        arrays: list[Any] = [array[...] for array in opened] if size <= IN_MEMORY else list(opened)
        if self.num_samples == "one":
            arrays, shape = [_OneSample(array) for array in arrays], (1, *shape)
        if not 3 <= len(shape) <= 5:
            raise ValueError(
                f"{self.density} must have a time and one to three spatial axes, got {shape}"
            )
        check_times(opened[0], 0 if self.num_samples == "one" else 1)
        self.opened = opened[0]
        cells = self._cells(opened[0], arrays[0], shape[2:])
        if self.land == "missing":
            given = self.reading.get("fill")
            fill = None if given == "keep" else given
            land = (cells == 0).numpy()
            arrays = [
                _AtSea(array, land, fill, one.path)
                for array, one in zip(arrays, opened, strict=True)
            ]
        count, times = shape[:2]
        if count > 1:
            cut = count - num_held_out(count, self.validation)
            parts = [(range(cut), 0, times), (range(cut, count), 0, times)]
        else:
            cut = times - num_held_out(times, self.validation)
            parts = [(range(1), 0, cut), (range(1), cut, times)]
        places = [
            [(n, t) for n in some for t in range(start, stop - self.unroll)]
            for some, start, stop in parts
        ]
        if not places[0] or (self.validation and not places[1]):
            raise ValueError(
                f"{self.density} must have {self.unroll + 1} time steps to train on and as many to hold "
                f"out, got {times} of {count} samples"
            )
        sets = [
            Steps(arrays, some, self.unroll, cells if self.has_cells else None) for some in places
        ]
        return sets[0], sets[1] if places[1] else None

    def write_step(
        self,
        path: str | os.PathLike[str],
        first: int = -2,
        sample: int = 0,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the input of the network for one step, for `neurenix-ms predict`.

        A NetCDF file (`.nc`) has the coordinates of the density, the time at which the step starts, and
        the step itself, so that the prediction has the time at its end.

        Args:
            path: A new file, in a format of `create_array`.
            first: Number of the time at which the step starts. Fields must be there for its end, too:
                -2 is the last step.
            sample: Number of the sample, for `num_samples="many"`.
            overwrite: Replace what is there.

        Raises:
            ValueError: If there is no such step, or something is at `path`.

        Examples:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     np.save(f"{folder}/density.npy", np.ones((9, 16, 12)))
            ...     data = DensityMaps(f"{folder}/density.npy", validation=0.4)
            ...     data.write_step(f"{folder}/step.npy")
            ...     np.load(f"{folder}/step.npy").shape
            (1, 16, 12)
        """
        steps = cast(Steps, self.sets[0])
        lengths = (1, *self.opened.shape) if self.num_samples == "one" else self.opened.shape
        start = first + lengths[1] if first < 0 else first
        if not 0 <= start < lengths[1] - 1:
            raise ValueError(f"first must be a time before the last of {lengths[1]}, got {first}")
        if not 0 <= sample < lengths[0]:
            raise ValueError(f"sample must be below {lengths[0]}, got {sample}")
        x, _ = Steps(steps.arrays, [(sample, start)], 1, steps.cells)[0]
        said: dict[str, Any] = {}
        if self.opened.axes is not None:
            said = self._said(self.opened, lengths[2:], start)
        write_whole(Path(path), x.float().numpy(), overwrite, **said)

    def _said(self, opened: DiskArray, size: Sequence[int], start: int) -> dict[str, Any]:
        """Return what the file of a step says beside its values."""
        names = [str(name) for name in opened.axes or ()]
        axis, spatial = names[-len(size) - 1], names[-len(size) :]
        known, others = opened.coordinates, {*names[: -len(size)]}
        found = {name: one for name, one in known.items() if not others & {*one.dims}}
        about: dict[str, Any] = {} if opened.units is None else {"forecast_units": opened.units}
        if axis in known:
            times, said = known[axis].values, known[axis].attributes
            said = {name: value for name, value in said.items() if name != "bounds"}
            found[axis] = Coordinate((), times[start], said)
            about["forecast_step"] = float(times[start + 1] - times[start])
        keys = zip((self.density, *self.fields), (self.density_key, *self.field_keys), strict=True)
        density, *fields = [key or Path(path).stem for path, key in keys]
        channels = [density, *(["cell_area"] if self.has_cells else []), *fields]
        found["channel"] = Coordinate(("channel",), np.array(channels), {})
        return {"axes": ["channel", *spatial], "coordinates": found, "attributes": about}

    def _cells(self, opened: DiskArray, density: Any, size: Sequence[int]) -> Tensor:
        """Return the area of every cell, in units of the largest; 0 on land."""
        cells = torch.ones(*size)
        if self.areas == "latitude":
            axis, latitude = latitudes(opened, len(size))
            cosine = torch.from_numpy(np.cos(np.radians(latitude))).float()
            cells = cells * cosine.view(-1, *(1,) * (len(size) - axis - 1))
        if self.land == "missing":
            land = np.isnan(density[0, slice(0, 1)][0])
            if land.all():
                raise ValueError(
                    f"{opened.path} must have values at the first time, got none: all would be land"
                )
            cells[torch.from_numpy(land)] = 0
        return cells / cells.max()


def check_times(opened: DiskArray, axis: int) -> None:
    """Raise if the file says the times, and steps of very different lengths are among them."""
    name = (opened.axes or {axis: ""})[axis]
    steps = np.diff(np.asarray(opened.attributes.get("coordinates", {}).get(name, []), float))
    if steps.size and not 0 < steps.max() <= MISSED * steps.min():
        at = int(steps.argmax())
        raise ValueError(
            f"{opened.path} must have equal time steps, got steps of {steps.min():g} and "
            f"{steps.max():g} in {name!r}, the longest from {at} to {at + 1}"
        )


def latitudes(opened: DiskArray, spatial_dims: int) -> tuple[int, np.ndarray]:
    """Return the number of the spatial axis of latitudes, and their values in degrees."""
    names = (opened.axes or ())[-spatial_dims:]
    known = opened.attributes.get("coordinates", {})
    for axis, name in enumerate(names):
        if str(name).lower() in ("lat", "latitude") and name in known:
            return axis, np.asarray(known[name], float)
    raise ValueError(
        f"areas='latitude' needs a NetCDF file with a coordinate lat or latitude, got {opened.path} "
        f"with the axes {names}"
    )


class _OneSample:
    """An array `(T, *S)` as the only one of `(1, T, *S)`."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getitem__(self, index: tuple[int, slice]) -> Any:
        return self.array[index[1]]


class Unrolled(nn.Module):
    """A network of one step, rolled out over several on its own predictions.

    Args:
        model: One step.
        unroll: Number of steps.

    Shape:
        `(B, 1 + F * unroll, *S)` -> `(B, unroll, *S)`
    """

    def __init__(self, model: nn.Module, unroll: int) -> None:
        super().__init__()
        self.model = model
        self.unroll = unroll

    def forward(self, x: Tensor) -> Tensor:
        density, steps = x[:, :1], []
        for fields in x[:, 1:].tensor_split(self.unroll, dim=1):
            density = self.model(torch.cat([density, fields], dim=1))
            steps.append(density)
        return torch.cat(steps, dim=1)


class RelativeError(nn.Module):
    """Mean squared error of every map relative to its mean square.

    Shape:
        twice `(B, T, *S)` -> a scalar
    """

    def forward(self, predicted: Tensor, truth: Tensor) -> Tensor:
        square = truth.square().flatten(2).sum(2).clamp(min=torch.finfo(truth.dtype).tiny)
        return ((predicted - truth).square().flatten(2).sum(2) / square).mean()


class Density(FitTask, RegressionTask):
    """Train a network by name to predict the next density, with the mass of the previous one.

    The network is wrapped in `MassConserving`, with the units, the land and the areas of the data, so
    the written network conserves mass.

    Args:
        network: One of `neurenix-ms list`; its input channels are those of the data.
        arguments: Arguments of its class that replace those of the preset.
        method: How the mass is corrected; see `conserve_mass`.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.

    Shape:
        `(B, 1 + F * unroll, *S)` and densities `(B, unroll, *S)`

    Raises:
        ValueError: If there is no such network or argument.

    Examples:
        >>> Density("unet", {"features": [4, 8]}, method="shift").method
        'shift'
    """

    def __init__(
        self,
        network: str = "unet",
        arguments: Arguments | None = None,
        *,
        method: Literal["scale", "shift"] = "scale",
        optimizer: str = "AdamW",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 3e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
    ) -> None:
        super().__init__(
            nn.Identity(),  # until the data say how many fields there are
            RelativeError(),
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=learning_rate,
            schedule=schedule,
        )
        self.name, self.arguments, self.method = network, dict(arguments or {}), method

    def prepare(self, data: Any) -> None:
        """Build the network, with the scales of the data."""
        seen = data.sets[0]
        num_fields = data.num_fields
        counts = {"in_channels": 1 + num_fields, "out_channels": 1}
        arguments = as_in_the_data(self.arguments, counts)
        chosen = np.linspace(0, len(seen) - 1, min(len(seen), SCALED_MAPS)).round().astype(int)
        maps = torch.stack([seen[int(i)][0][: 1 + num_fields] for i in chosen])
        scales = maps.square().transpose(0, 1).flatten(1).mean(1).sqrt()
        scales = torch.where(scales > 0, scales, 1)
        cells = 1 if data.has_cells else None
        step = MassConserving(
            create(self.name, **arguments),
            self.method,
            scales=scales.tolist(),
            mask_channel=cells,
            area_channel=cells,
        )
        self.model = Unrolled(step, data.unroll)

    def network(self) -> nn.Module:
        """Return the network of one step."""
        return cast(Unrolled, self.model).model

    @torch.no_grad()
    def report(self, data: Any) -> list[str]:
        """Return the error of a step on what was held out, beside that of no motion, and of the mass."""
        if data.sets[1] is None:
            return []
        step = self.network().cpu().eval()
        errors, still, lost = [], [], []
        for i in range(len(data.sets[1])):
            x, after = data.sets[1][i]
            before, truth = x[None, :1], after[None, :1]
            found = step(x[None, : 1 + data.num_fields])
            errors.append(float((found - truth).norm() / truth.norm()))
            still.append(float((before - truth).norm() / truth.norm()))
            area = x[None, 1:2] if data.has_cells else None
            mass = [float(total_mass(one, cell_area=area)) for one in (before, found)]
            lost.append(abs(mass[1] - mass[0]) / abs(mass[0]))
        return [
            f"relative error of a step on {len(errors)} held-out maps: {np.mean(errors):.3g}; if "
            f"nothing moved: {np.mean(still):.3g}; largest relative change of the mass: {max(lost):.1g}"
        ]
