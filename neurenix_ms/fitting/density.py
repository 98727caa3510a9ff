"""Maps of a density over time: windows of a file as data, and the task that conserves their mass."""

from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from neurenix_ms._core.checks import check_integer
from neurenix_ms.datasets import open_array
from neurenix_ms.fitting.loading import FitData, num_held_out
from neurenix_ms.fitting.tasks import Arguments, FitTask, as_in_the_data, optimizer_named
from neurenix_ms.registry import create
from neurenix_ms.training import RegressionTask
from neurenix_ms.transport import MassConserving

SCALED_MAPS = 64  # maps from which the scales are computed, at most


class Steps(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a few steps in samples of density and fields.

    Args:
        arrays: The density and the fields, each `(N, T, *S)`; slices are read when they are needed.
        places: Sample and first time of every window.
        unroll: Steps of a window.

    Shape:
        an item is the input `(1 + F * unroll, *S)`, density and fields of every step, and the densities
        after it `(unroll, *S)`
    """

    def __init__(self, arrays: list[Any], places: list[tuple[int, int]], unroll: int) -> None:
        self.arrays, self.places, self.unroll = arrays, places, unroll

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
        driving = torch.stack(means, dim=1).flatten(0, 1) if means else density[:0]
        return torch.cat([density[:1], driving]), density[1:]

    def _read(self, array: Any, sample: int, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(array[sample, rows], "float32"))


class DensityMaps(FitData):
    """Maps of a density and of what drives it, at equal time steps, for `Density`.

    Use it for ocean fields, such as tracers or drifting plastic, with the currents as fields. The last
    samples are held out; of a single one, its last time steps. Only the windows are read.

    Args:
        density: File of the density, `(T, *S)` or `(N, T, *S)`.
        fields: Files of the fields, such as the two components of a current, with the same axes; a file
            can be named twice.
        density_key: Name of the density in a file of several arrays.
        field_keys: Names of the fields.
        num_samples: "one" for `(T, *S)`, "many" for `(N, T, *S)`.
        reading: Further arguments of `open_array` for all files; fill replaces land.
        unroll: Steps of a window, for which the network is rolled out in training.
        batch_size: Windows of a batch.
        num_workers: Processes that read.
        validation: Part that is held out.
        seed: Seed of the order.

    Raises:
        ValueError: If a file is not usable, the files have different shapes, or there are too few time
            steps.

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
        self.unroll = check_integer("unroll", unroll, 1)

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Open the files, and return the windows to train on and those held out."""
        files = [(self.density, self.density_key), *zip(self.fields, self.field_keys, strict=True)]
        opened = [open_array(path, key, **self.reading) for path, key in files]
        shape = opened[0].shape
        for array in opened:
            if array.shape != shape:
                raise ValueError(
                    f"fields must have the shape {shape} of the density, got {array.shape} in "
                    f"{array.path}"
                )
        arrays: list[Any] = list(opened)
        if self.num_samples == "one":
            arrays, shape = [_OneSample(array) for array in opened], (1, *shape)
        if not 3 <= len(shape) <= 5:
            raise ValueError(
                f"{self.density} must have a time and one to three spatial axes, got {shape}"
            )
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
        sets = [Steps(arrays, some, self.unroll) for some in places]
        return sets[0], sets[1] if places[1] else None


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
    """Train a network by name to predict the next density, with the mass of the one before.

    The network is wrapped in `MassConserving`, with the units of the data, so the conservation is part
    of what is written.

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
        num_fields = len(data.fields)
        counts = {"in_channels": 1 + num_fields, "out_channels": 1}
        arguments = as_in_the_data(self.arguments, counts)
        chosen = np.linspace(0, len(seen) - 1, min(len(seen), SCALED_MAPS)).round().astype(int)
        maps = torch.stack([seen[int(i)][0][: 1 + num_fields] for i in chosen])
        scales = maps.square().transpose(0, 1).flatten(1).mean(1).sqrt()
        scales = torch.where(scales > 0, scales, 1)
        step = MassConserving(create(self.name, **arguments), self.method, scales=scales.tolist())
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
            found = step(x[None, : 1 + len(data.fields)])
            errors.append(float((found - truth).norm() / truth.norm()))
            still.append(float((before - truth).norm() / truth.norm()))
            lost.append(float((found.sum() - before.sum()).abs() / before.sum().abs()))
        return [
            f"relative error of a step on {len(errors)} held-out maps: {np.mean(errors):.3g}; if "
            f"nothing moved: {np.mean(still):.3g}; largest relative change of the mass: {max(lost):.1g}"
        ]
