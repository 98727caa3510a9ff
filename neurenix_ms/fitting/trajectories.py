"""Hierarchies of time-steppers on trajectories in files."""

import copy
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from neurenix_ms._core.checks import check_integer, check_integers, check_number
from neurenix_ms._core.seeds import mixed_seed
from neurenix_ms.datasets import open_array
from neurenix_ms.fitting.loading import FitData, num_held_out
from neurenix_ms.fitting.tasks import Arguments, FitTask, optimizer_named
from neurenix_ms.registry import create
from neurenix_ms.timestepping import (
    HierarchicalTimeStepper,
    StandardizedNetwork,
    TimeStepper,
    select_strides,
)
from neurenix_ms.timestepping.banks import Bank, can_be_stacked, make_bank
from neurenix_ms.timestepping.run import NUM_VALIDATION_WINDOWS, WindowLoss
from neurenix_ms.timestepping.windows import WindowSource, channel_units
from neurenix_ms.training.step import Task


class Draws(Dataset[Tensor]):
    """Seeds of the batches of an epoch, which the task draws itself.

    Args:
        count: Batches of an epoch.
        seed: Seed of all epochs.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other batches in this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(f"index must be below {self.count}, got {index}")
        return torch.tensor(mixed_seed(self.seed, self.epoch * self.count + index))


class Trajectories(FitData):
    """Trajectories at equal time steps in a file, for `Hierarchy`. They are read as a whole.

    The last trajectories are held out; of a single one, its last rows.

    Args:
        path: File of an array `(N, T, *D)`: trajectories, time steps, states; or `(T, *D)` of one
            trajectory.
        num_trajectories: "many" for `(N, T, *D)`, "one" for `(T, *D)`.
        key: Name of the array in a file with several arrays.
        reading: Further arguments of `open_array`: shape, dtype, offset, fill.
        num_batches: Batches of an epoch.
        batch_size: Windows per stride and batch.
        validation: Fraction of the data that is held out.
        seed: Seed of the windows.

    Raises:
        ValueError: If the file is not usable, or has other axes.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/states.npy", np.zeros((10, 50, 3)))
        ...     data = Trajectories(f"{folder}/states.npy", validation=0.2)
        ...     number = len(data.sets[0])
        >>> number, data.seen.shape, data.held_out.shape
        (100, torch.Size([8, 50, 3]), torch.Size([2, 50, 3]))
    """

    def __init__(
        self,
        path: str,
        *,
        num_trajectories: Literal["many", "one"] = "many",
        key: str | None = None,
        reading: dict[str, Any] | None = None,
        num_batches: int = 100,
        batch_size: int = 320,
        validation: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(None, 0, validation, seed)
        self.path = path
        self.num_trajectories = num_trajectories
        self.key = key
        self.reading = dict(reading or {})
        self.num_batches = check_integer("num_batches", num_batches, 1)
        self.windows = check_integer("batch_size", batch_size, 1)

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Read the trajectories, and return the draws of batches."""
        array = np.asarray(open_array(self.path, self.key, **self.reading)[...])
        if self.num_trajectories == "one":
            array = array[None]
        if array.ndim < 3:
            raise ValueError(
                f"{self.path} must have the axes (trajectories, time, features), got shape "
                f"{array.shape}; --data.num_trajectories=one is for (time, features)"
            )
        states = torch.from_numpy(array.astype("float32"))
        if len(states) > 1:
            cut = len(states) - num_held_out(len(states), self.validation)
            self.seen, self.held_out = states[:cut], states[cut:]
        else:
            cut = states.shape[1] - num_held_out(states.shape[1], self.validation)
            self.seen, self.held_out = states[:, :cut], states[:, cut:]
        some = self.held_out.numel() > 0
        return Draws(self.num_batches, self.seed), Draws(1, self.seed) if some else None


class Hierarchy(FitTask, Task):
    """Train one network per stride on trajectories, and couple them to a `HierarchicalTimeStepper`.

    As `fit_hierarchy` does: a network makes several strides, each from its own last prediction, and is
    compared with the trajectory. States and changes are scaled to unit variance. The weights of every
    stride with the smallest error on the held-out trajectories are kept. The held-out trajectories also
    select the strides that the coupled forecast needs.

    Args:
        step_sizes: The strides, in time steps of the file.
        network: Network from states to changes, one of `neurenix-ms list`.
        arguments: Arguments of its class. The number of features of an MLP is that of the data.
        horizon: Strides per window.
        windows: "all" draws windows anywhere, "start" at the first rows only.
        select: Drop strides that do not improve the forecast of the held-out trajectories.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.

    Shape:
        windows `(K, B, horizon + 1, *D)`, drawn from trajectories

    Raises:
        ValueError: If strides are equal or below 1, or the data are shorter than a stride.

    Examples:
        >>> Hierarchy([1, 8, 64], arguments={"hidden": [32, 32]}).step_sizes
        [1, 8, 64]
    """

    def __init__(
        self,
        step_sizes: list[int],
        network: str = "mlp",
        arguments: Arguments | None = None,
        *,
        horizon: int = 5,
        windows: Literal["all", "start"] = "all",
        select: bool = True,
        optimizer: str = "Adam",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 1e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
    ) -> None:
        super().__init__(
            nn.Identity(),  # until the data say how many features there are
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=check_number("learning_rate", learning_rate, above=0),
            schedule=schedule,
        )
        self.step_sizes = check_integers("step_sizes", step_sizes, 1, min_length=1)
        if len(set(self.step_sizes)) < len(self.step_sizes):
            raise ValueError(f"step_sizes must be different, got {self.step_sizes}")
        self.name, self.arguments = network, dict(arguments or {})
        self.horizon = check_integer("horizon", horizon, 1)
        self.windows = windows
        self.select = select
        self.best_errors = [float("inf")] * len(self.step_sizes)
        self.best: list[list[Tensor]] = []

    def prepare(self, data: Any) -> None:
        """Build the networks, with the scales of the data."""
        data.setup()
        seen, held_out = data.seen, data.held_out
        for states, kind in ((seen, "train on"), (held_out, "hold out")):
            if states.numel() and states.shape[1] <= max(self.step_sizes):
                raise ValueError(
                    f"the trajectories to {kind} must have more than {max(self.step_sizes)} time steps, "
                    f"the largest of step_sizes, got {states.shape[1]}"
                )
        if self.name == "mlp":
            features = dict.fromkeys(("in_features", "out_features"), seen.shape[2])
            self.arguments = {**features, **self.arguments}
        networks = [create(self.name, **self.arguments) for _ in self.step_sizes]
        self.source = WindowSource(seen, self.step_sizes, self.horizon, self.windows)
        self.units = *channel_units(seen), self.source.change_scale()
        self.batch = data.windows
        self.model = make_bank(networks, can_be_stacked(networks))
        self.window_loss = WindowLoss(*self.units, self.source.weights)
        self.best = [self._weights(k) for k in range(len(networks))]
        self.fixed: Tensor | None = None
        if held_out.numel():
            source = WindowSource(held_out, self.step_sizes, self.horizon, self.windows)
            self.fixed = source.spread(NUM_VALIDATION_WINDOWS)
            self.held_out_loss = WindowLoss(*self.units, source.weights)

    @property
    def bank(self) -> Bank:
        """The networks of all strides."""
        return cast(Bank, self.model)

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(batch))
        windows = self.source.drawn(self.batch, generator).to(self.device)
        losses = self._on_device(self.window_loss)(self.bank, windows)
        self._log("train_loss", losses.mean())
        return losses.sum()

    def validation_step(self, batch: Tensor, batch_index: int) -> Tensor:
        assert self.fixed is not None
        errors = self._on_device(self.held_out_loss)(self.bank, self.fixed.to(self.device))
        self._log("val_loss", errors.mean())
        for k, error in enumerate(errors.tolist()):
            if error < self.best_errors[k]:
                self.best_errors[k], self.best[k] = error, self._weights(k)
        return errors.mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the best weights of every stride."""
        checkpoint["best"] = {"errors": self.best_errors, "weights": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best weights of every stride."""
        self.best_errors = checkpoint["best"]["errors"]
        self.best = checkpoint["best"]["weights"]

    def network(self) -> HierarchicalTimeStepper:
        """Return the hierarchy of the strides that `report` has selected, with their best weights."""
        return self._selected

    @torch.no_grad()
    def report(self, data: Any) -> list[str]:
        """Couple the networks, and return the errors of the sets of strides that were tried."""
        bank = copy.deepcopy(self.bank).cpu()
        if self.fixed is not None:
            for k, weights in enumerate(self.best):
                for target, source in zip(bank.tensors(k), weights, strict=True):
                    target.copy_(source)
        mean, std, scale = self.units
        steppers = [
            TimeStepper(StandardizedNetwork(one, mean.tolist(), std.tolist(), gain).eval(), stride)
            for one, stride, gain in zip(
                bank.unpacked(), self.step_sizes, scale.tolist(), strict=True
            )
        ]
        self._selected = HierarchicalTimeStepper(steppers)
        if not (self.select and self.fixed is not None):
            return []
        chosen = select_strides(self._selected, data.held_out)
        self._selected = chosen.hierarchy
        tried = [f"{list(strides)}: {error:.3g}" for strides, error in chosen.table]
        return [
            f"strides that are kept: {chosen.hierarchy.step_sizes}",
            f"mean squared error of forecasts of the held-out trajectories, by strides: "
            f"{'; '.join(tried)}",
        ]

    def _weights(self, k: int) -> list[Tensor]:
        return [tensor.detach().cpu().clone() for tensor in self.bank.tensors(k)]

    def _on_device(self, loss: WindowLoss) -> WindowLoss:
        device = self.device
        return WindowLoss(
            loss.mean.to(device),
            loss.std.to(device),
            loss.scale.to(device),
            loss.weights.to(device),
        )

    def _log(self, name: str, value: Tensor) -> None:
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=1)
