"""Lightning modules that train any network on pairs of input and target."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from neurenix_ms._core.arguments import checked
from neurenix_ms.training.step import Loss, Metrics, Schedule, Task


class RegressionTask(Task):
    """Train a network whose output is compared directly with the target.

    The task defines the steps; Lightning's Trainer provides the loops, checkpoints, resumption, mixed
    precision and several devices. It logs `train_loss`, `val_loss` and `test_loss`, and every metric
    with the same prefixes, as means over an epoch.

    Args:
        model: The network to train.
        loss: Function of output and target that returns a scalar; `nn.MSELoss()` by default.
        metrics: One or several torchmetrics, or a dict that names them. Each stage gets copies.
        optimizer: Called with the parameters and `lr`; `functools.partial` sets further options.
        learning_rate: Its `lr`, and the peak of the one-cycle schedule.
        schedule: Schedule of the learning rate per step: `None` keeps it constant, `"one_cycle"` warms
            up and decays to nearly 0 over the Trainer's estimated number of steps, and a callable takes
            the optimizer and that number and returns a scheduler.
        input_key: Key of the input if a batch is a dict; otherwise a batch is a pair.
        target_key: Key of the target if a batch is a dict.
        condition_key: Key of the condition of a network that takes one, if a batch is a dict; otherwise,
            where a key is given, a batch is a triple of input, condition and target.
        tile_size: Edge length of tiles, to train on inputs that do not fit into memory, with the same
            result and the same gradient (see `accumulate_gradients`). Training metrics are omitted
            then, because the whole output is never computed.
        whole: Parts run whole, if `tile_size` is given (see `TiledModel`).
        domain_size: Number of consecutive ranks that share the tiles of one batch under
            `strategy="ddp"`, which averages the gradients over the groups; all ranks by default. The
            ranks of a group must get the same batch: use `use_distributed_sampler=False` and a sampler
            that depends on `rank // domain_size`.

    Shape:
        That of the model; the loss must accept its output and the target.

    Raises:
        ValueError: If the learning rate is not positive, the schedule is unknown or needs a number of
            steps that the Trainer does not have, or a batch is neither a pair (with `condition_key`, a
            triple) nor such a dict.

    Examples:
        >>> import torch
        >>> from torchmetrics import MeanAbsoluteError
        >>> task = RegressionTask(nn.Linear(3, 1), metrics={"mae": MeanAbsoluteError()})
        >>> task(torch.zeros(2, 3)).shape  # lightning's Trainer().fit(task, loader) trains it
        torch.Size([2, 1])
    """

    def compared(self, output: Any, target: Any) -> tuple[Any, Any]:
        """Return output and target unchanged."""
        return output, target


class SegmentationTask(Task):
    """Train a network that returns one logit per class and pixel (or voxel).

    The loss gets the logits, `nn.CrossEntropyLoss()` by default. The metrics get classes: the
    largest of several channels, or 1 where the logit of a single channel is positive. Use
    `nn.BCEWithLogitsLoss()` for a single channel.

    Args:
        model: The network to train.
        loss: Function of logits and target that returns a scalar.
        metrics: Metrics of classes, such as `torchmetrics.JaccardIndex`.
        optimizer: Called with the parameters and `lr`; `functools.partial` sets further options.
        learning_rate: Its `lr`, and the peak of the one-cycle schedule.
        schedule: `None` keeps the learning rate, `"one_cycle"` warms it up and decays it, and a callable
            takes the optimizer and the number of steps and returns a scheduler.
        input_key: Key of the input if a batch is a dict.
        target_key: Key of the target if a batch is a dict.
        condition_key: Key of the condition of a network that takes one.
        tile_size: Edge length of tiles, for inputs that do not fit into memory.
        whole: Parts run whole, if `tile_size` is given.
        domain_size: Number of ranks that share the tiles of one batch.

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
        """Return the class of every pixel or voxel, predicted and true."""
        classes = (output > 0).long() if output.shape[1] == 1 else output.argmax(dim=1)
        return classes, target.long()


class MultiScaleTask(Task):
    """Train a network that returns a list of outputs, one per scale.

    The loss gets the whole list. The metrics compare the finest output, which is the largest one at
    any position of the list (the first of several equals), with the finest target.

    Args:
        model: The network to train.
        loss: Function of the list and the target, which may be a list too, that returns a scalar.
        metrics: Metrics of the finest output.
        optimizer: Called with the parameters and `lr`; `functools.partial` sets further options.
        learning_rate: Its `lr`, and the peak of the one-cycle schedule.
        schedule: `None` keeps the learning rate, `"one_cycle"` warms it up and decays it, and a callable
            takes the optimizer and the number of steps and returns a scheduler.
        input_key: Key of the input if a batch is a dict.
        target_key: Key of the target if a batch is a dict.
        condition_key: Key of the condition of a network that takes one.
        tile_size: Edge length of tiles, for inputs that do not fit into memory.
        whole: Parts run whole, if `tile_size` is given.
        domain_size: Number of ranks that share the tiles of one batch.

    Shape:
        Output: a list of `(B, C, *S)`

    Raises:
        ValueError: As for `RegressionTask`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import GaussianPyramid
        >>> def loss(outputs, target):
        ...     return sum((output.mean() - target.mean()) ** 2 for output in outputs)
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
        condition_key: str | None = None,
        tile_size: int | Sequence[int] | None = None,
        whole: Literal["auto"] | Sequence[str] = "auto",
        domain_size: int | None = None,
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
            condition_key=condition_key,
            tile_size=tile_size,
            whole=whole,
            domain_size=domain_size,
        )

    def compared(self, output: Sequence[Tensor], target: Any) -> tuple[Tensor, Tensor]:
        """Return the finest output and the finest target."""
        return _finest(output), target if isinstance(target, Tensor) else _finest(target)


def _finest(scales: Sequence[Tensor]) -> Tensor:
    return max(scales, key=lambda one: one[0, 0].numel())
