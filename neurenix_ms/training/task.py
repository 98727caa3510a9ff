"""Any network in, a LightningModule that trains it on pairs of input and target out."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from neurenix_ms._core.arguments import checked
from neurenix_ms.training.step import Loss, Metrics, Schedule, Task


class RegressionTask(Task):
    """Train a network whose output is compared with the target as it is.

    Loops, checkpoints, resuming, mixed precision and several devices are the Trainer's business;
    this says what a step is. Logged are `train_loss`, `val_loss` and `test_loss`, and every metric
    with the same prefixes, as means over an epoch.

    Args:
        model: The network to train.
        loss: Called with the output and the target, returns a scalar; `nn.MSELoss()` by default.
        metrics: One or several torchmetrics, a dict of them to name them. Each stage gets copies.
        optimizer: Called with the parameters and `lr`; `functools.partial` sets further options.
        learning_rate: Its `lr`, and the peak of the one-cycle schedule.
        schedule: How the learning rate goes on after every step: `None` leaves it alone,
            `"one_cycle"` warms up and decays to nothing over the Trainer's estimated steps, and
            a callable gets the optimizer and that number and returns a scheduler.
        input_key: Where the input is if a batch is a dict; otherwise a batch is a pair.
        target_key: Where the target is if a batch is a dict.
        tile_size: Run maps that do not fit in tiles of this edge, with the same result and the same
            gradient (see `accumulate_gradients`; one process). Training metrics are left out then:
            there is never a whole output.
        whole: Parts that run whole then (see `TiledModel`).

    Shape:
        Whatever the model and the loss agree on.

    Raises:
        ValueError: If the learning rate is not positive, the schedule is unknown or needs an end
            that the Trainer does not have, or a batch is neither a pair nor such a dict.

    Examples:
        >>> import torch
        >>> from torchmetrics import MeanAbsoluteError
        >>> task = RegressionTask(nn.Linear(3, 1), metrics={"mae": MeanAbsoluteError()})
        >>> task(torch.zeros(2, 3)).shape  # lightning's Trainer().fit(task, loader) trains it
        torch.Size([2, 1])
    """

    def compared(self, output: Any, target: Any) -> tuple[Any, Any]:
        """Output and target as they are."""
        return output, target


class SegmentationTask(Task):
    """Train a network that gives one logit per class and cell.

    The loss gets the logits, `nn.CrossEntropyLoss()` by default. The metrics get classes: the
    largest of several channels, or where the logit of a single channel is positive. Give
    `nn.BCEWithLogitsLoss()` for a single channel.

    Args:
        model: The network to train.
        loss: Called with logits and target, returns a scalar.
        metrics: Metrics of classes, such as `torchmetrics.JaccardIndex`.
        optimizer: See `RegressionTask`, as for all that follow.
        learning_rate: Peak learning rate.
        schedule: `None`, `"one_cycle"` or a callable.
        input_key: Where the input is if a batch is a dict.
        target_key: Where the target is if a batch is a dict.
        tile_size: Edge of tiles, for maps that do not fit.
        whole: Parts that run whole then.

    Shape:
        Output `(B, C, *S)` and classes `(B, *S)`, or output and target `(B, 1, *S)`

    Raises:
        ValueError: As for `RegressionTask`.

    Examples:
        >>> import torch
        >>> from torchmetrics import JaccardIndex
        >>> iou = JaccardIndex(task="multiclass", num_classes=4)
        >>> task = SegmentationTask(nn.Conv2d(3, 4, 1), metrics={"iou": iou})
        >>> task(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def _default_loss(self) -> Loss:
        return nn.CrossEntropyLoss()

    def compared(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The class of every cell, predicted and true."""
        classes = (output > 0).long() if output.shape[1] == 1 else output.argmax(dim=1)
        return classes, target.long()


class MultiScaleTask(Task):
    """Train a network that gives a list of maps, one per scale.

    The loss gets the whole list. The metrics compare the finest map, which is the largest one
    wherever it stands in the list (the first of several equals), with the finest target.

    Args:
        model: The network to train.
        loss: Called with the list and the target, which may be a list too; returns a scalar.
        metrics: Metrics of the finest map.
        optimizer: See `RegressionTask`, as for all that follow.
        learning_rate: Peak learning rate.
        schedule: `None`, `"one_cycle"` or a callable.
        input_key: Where the input is if a batch is a dict.
        target_key: Where the target is if a batch is a dict.
        tile_size: Edge of tiles, for maps that do not fit.
        whole: Parts that run whole then.

    Shape:
        Output: a list of `(B, C, *S)`

    Raises:
        ValueError: As for `RegressionTask`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import GaussianPyramid
        >>> def loss(maps, target):
        ...     return sum((finer.mean() - target.mean()) ** 2 for finer in maps)
        >>> task = MultiScaleTask(GaussianPyramid(3), loss)
        >>> len(task(torch.zeros(1, 1, 16, 16)))
        3
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        optimizer: Callable[..., Optimizer] = AdamW,
        learning_rate: float = 1e-3,
        schedule: Schedule | None = None,
        input_key: str = "input",
        target_key: str = "target",
        tile_size: int | Sequence[int] | None = None,
        whole: Literal["auto"] | Sequence[str] = "auto",
    ) -> None:
        super().__init__(
            model,
            loss,
            metrics,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            input_key=input_key,
            target_key=target_key,
            tile_size=tile_size,
            whole=whole,
        )

    def compared(self, output: Sequence[Tensor], target: Any) -> tuple[Tensor, Tensor]:
        """The finest map, predicted and true."""
        return _finest(output), target if isinstance(target, Tensor) else _finest(target)


def _finest(maps: Sequence[Tensor]) -> Tensor:
    return max(maps, key=lambda one: one[0, 0].numel())
