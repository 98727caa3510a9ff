"""Tasks of `fit`: networks by name, trained on pairs of images or volumes."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex
from torchmetrics.regression import MeanAbsoluteError

from neurenix_ms._core.checks import check_name
from neurenix_ms.registry import create
from neurenix_ms.training import DeepSupervisionLoss, RegressionTask, SegmentationTask

OPTIMIZERS = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
Arguments = dict[str, Any]


def optimizer_named(name: str, arguments: Arguments | None) -> Any:
    """Return what makes an optimizer of `torch.optim`."""
    cls: type[Optimizer] = getattr(torch.optim, check_name("optimizer", name, OPTIMIZERS))
    return partial(cls, **(arguments or {}))


def as_in_the_data(arguments: Arguments, counts: Mapping[str, int]) -> Arguments:
    """Return arguments with the numbers of channels that the data have; raise if others are given."""
    for name, count in counts.items():
        if arguments.get(name, count) != count:
            raise ValueError(f"{name} must be {count} as in the data, got {arguments[name]}")
    return {**arguments, **counts}


class FitTask:
    """What `fit` asks of its tasks, besides those of a Lightning module."""

    model: nn.Module

    def network(self) -> nn.Module:
        """Return the network that is written."""
        return self.model

    def prepare(self, data: Any) -> None:
        """Take what the task needs from its data, before training; raise if they do not fit."""

    def report(self, data: Any) -> list[str]:
        """Return lines about the trained network."""
        return []


class Segmentation(FitTask, SegmentationTask):
    """Train a network by name to find the class of every pixel or voxel.

    The metric is the mean intersection over union, `val_iou`, if no others are given.

    Args:
        network: One of `neurenix-ms list`.
        arguments: Arguments of its class that replace those of the preset.
        loss: Loss of logits and classes; cross entropy by default.
        metrics: Metrics of classes, of torchmetrics, by name.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.
        tile_size: Edge length of the tiles in which a batch is computed, if it does not fit into memory.

    Shape:
        `(B, C, *S)` and classes `(B, *S)`

    Raises:
        ValueError: If there is no such network or argument, or a target is not one of the classes.

    Examples:
        >>> task = Segmentation("unet", {"in_channels": 1, "features": [4]})
        >>> type(task.network()).__name__, list(task.metrics.keys())
        ('UNet', ['iou'])
    """

    def __init__(
        self,
        network: str,
        arguments: Arguments | None = None,
        *,
        loss: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        optimizer: str = "AdamW",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 1e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
        tile_size: int | list[int] | None = None,
    ) -> None:
        model = create(network, **(arguments or {}))
        self.count = getattr(model, "out_channels", 2)
        default = WithFloats() if self.count == 1 else nn.CrossEntropyLoss()
        super().__init__(
            model,
            OverOutputs(loss or default),
            metrics or {"iou": overlap_of(self.count)},
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=learning_rate,
            schedule=schedule,
            tile_size=tile_size,
        )

    def prepare(self, data: Any) -> None:
        """Raise unless the channels of the first crop fit the network."""
        check_channels(self.model, data)

    def compared(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class of every pixel or voxel, predicted and true."""
        output = finest(output)
        return super().compared(output, target if output.shape[1] > 1 else target.unsqueeze(1))

    def _unpack(self, batch: Any) -> tuple[Any, Any]:
        inputs, target = super()._unpack(batch)
        last = max(2, self.count) - 1
        low, high = int(target.min()), int(target.max())
        if low < 0 or high > last:
            raise ValueError(
                f"targets must be classes from 0 to {last} for a network of {self.count} output "
                f"channels, got {low} to {high}; set --model.arguments.out_channels={high + 1}"
            )
        return inputs, target


class Regression(FitTask, RegressionTask):
    """Train a network by name to predict a value for every pixel or voxel.

    The metric is the mean absolute error, `val_mae`, if no others are given.

    Args:
        network: One of `neurenix-ms list`.
        arguments: Arguments of its class that replace those of the preset.
        loss: Loss of output and target; the mean squared error by default.
        metrics: Metrics of torchmetrics, by name.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.
        tile_size: Edge length of the tiles in which a batch is computed, if it does not fit into memory.

    Shape:
        `(B, C, *S)` and values `(B, C', *S)`

    Raises:
        ValueError: If there is no such network or argument.

    Examples:
        >>> task = Regression("unet", {"in_channels": 1, "features": [4]})
        >>> type(task.network()).__name__, list(task.metrics.keys())
        ('UNet', ['mae'])
    """

    def __init__(
        self,
        network: str,
        arguments: Arguments | None = None,
        *,
        loss: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        optimizer: str = "AdamW",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 1e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
        tile_size: int | list[int] | None = None,
    ) -> None:
        super().__init__(
            create(network, **(arguments or {})),
            OverOutputs(loss or nn.MSELoss()),
            metrics or {"mae": MeanAbsoluteError()},
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=learning_rate,
            schedule=schedule,
            tile_size=tile_size,
        )

    def compared(self, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the finest output and the target."""
        return finest(output), target

    def prepare(self, data: Any) -> None:
        """Raise unless the channels of the first crop and its target fit the network."""
        target = check_channels(self.model, data)
        wanted = getattr(self.model, "out_channels", target.shape[0])
        if target.shape[0] != wanted:
            raise ValueError(
                f"targets must have {wanted} channels as the network returns, got {target.shape[0]}"
            )


class OverOutputs(nn.Module):
    """A loss of one output, and its mean over several with weights 1, 1/2, 1/4 and so on.

    Args:
        loss: The loss.

    Shape:
        those of the loss, or a list of outputs -> a scalar
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.over_all = DeepSupervisionLoss(loss)

    def forward(self, output: Any, target: Tensor) -> Tensor:
        return (self.loss if isinstance(output, Tensor) else self.over_all)(output, target)


class WithFloats(nn.Module):
    """Binary cross entropy of logits and classes 0 and 1.

    Shape:
        `(B, 1, *S)` and `(B, *S)` or `(B, 1, *S)` -> a scalar
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wanted = target.reshape(logits.shape).to(logits.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted)


def overlap_of(num_classes: int | None) -> Metric:
    """Return the mean intersection over union of classes."""
    return BinaryJaccardIndex() if num_classes == 1 else MulticlassJaccardIndex(num_classes or 2)


def finest(output: Any) -> Any:
    """Return the largest of several outputs, or the only one."""
    if isinstance(output, Tensor):
        return output
    return max(output, key=lambda one: one.shape[2:].numel())


def check_channels(model: nn.Module, data: Any) -> Tensor:
    """Raise unless the network takes the channels of the data; return the first target."""
    x, target = data.sets[0][0]
    wanted = getattr(model, "in_channels", None)
    if isinstance(wanted, int) and x.shape[0] != wanted:
        raise ValueError(
            f"inputs must have {wanted} channels as the network takes, got {x.shape[0]}; set "
            f"--model.arguments.in_channels={x.shape[0]}"
        )
    return target
