"""Any network in, a LightningModule that trains it on pairs of input and target out."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from neurenix_ms.execution import TiledModel
from neurenix_ms.training.tiles import loss_in_tiles

try:
    from lightning.pytorch import LightningModule
    from torchmetrics import Metric, MetricCollection
except ImportError as error:
    raise ImportError(
        "the tasks need lightning and torchmetrics: pip install 'neurenix_ms[train]'"
    ) from error

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Metrics: TypeAlias = Metric | Sequence[Metric] | Mapping[str, Metric] | MetricCollection
Schedule: TypeAlias = Literal["one_cycle"] | Callable[[Optimizer, int], LRScheduler]


class _Task(LightningModule):
    """What all tasks share: what a step is, what is logged, which optimizer and schedule run."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
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
        super().__init__()
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        if not (schedule is None or schedule == "one_cycle" or callable(schedule)):
            raise ValueError(f"schedule must be None, 'one_cycle' or a callable, got {schedule!r}")
        self.model = model
        self.loss = self._default_loss() if loss is None else loss
        self.metrics = _collect(metrics)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.input_key = input_key
        self.target_key = target_key
        self.tile_size = tile_size
        self.whole = whole
        self.train_metrics = self.metrics.clone(prefix="train_")
        self.val_metrics = self.metrics.clone(prefix="val_")
        self.test_metrics = self.metrics.clone(prefix="test_")

    def _default_loss(self) -> Loss:
        return nn.MSELoss()

    def compared(self, output: Any, target: Any) -> tuple[Any, Any]:
        """What the metrics get of an output and a target."""
        raise NotImplementedError

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self._step(batch, "train", self.train_metrics)

    def validation_step(self, batch: Any, batch_index: int) -> Tensor:
        return self._step(batch, "val", self.val_metrics)

    def test_step(self, batch: Any, batch_index: int) -> Tensor:
        return self._step(batch, "test", self.test_metrics)

    def predict_step(self, batch: Any, batch_index: int = 0) -> Any:
        """Output for a batch; one that is a tensor is the input itself, without a target."""
        return self._output(batch if isinstance(batch, Tensor) else self._unpack(batch)[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters(), lr=self.learning_rate)
        if self.schedule is None:
            return optimizer
        num_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(num_steps):
            raise ValueError(
                f"a schedule needs a Trainer with max_epochs or max_steps, got {num_steps} steps"
            )
        schedule = _one_cycle if self.schedule == "one_cycle" else self.schedule
        scheduler = schedule(optimizer, int(num_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _step(self, batch: Any, stage: str, metrics: MetricCollection) -> Tensor:
        inputs, target = self._unpack(batch)
        if stage == "train" and self.tile_size is not None:
            output = None  # there is never a whole one
            loss = loss_in_tiles(self.model, inputs, target, self.loss, self.tile_size, self.whole)
        else:
            output = self._output(inputs)
            loss = self.loss(output, target)
        size = len(inputs if isinstance(inputs, Tensor) else inputs[0])
        self.log(
            f"{stage}_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
            sync_dist=True,
        )
        if len(metrics) and output is not None:
            metrics.update(*self.compared(_detached(output), target))
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def _output(self, inputs: Any) -> Any:
        if self.tile_size is None or self.training:
            return self(inputs)
        tiled = TiledModel(
            self.model, self.tile_size, spatial_dims=inputs.ndim - 2, whole=self.whole
        )
        return tiled(inputs)

    def _unpack(self, batch: Any) -> tuple[Any, Any]:
        keys = (self.input_key, self.target_key)
        if isinstance(batch, Mapping):
            if not all(key in batch for key in keys):
                raise ValueError(f"a batch must have the keys {keys}, got {list(batch)}")
            return batch[self.input_key], batch[self.target_key]
        if isinstance(batch, list | tuple) and len(batch) == 2:
            return batch[0], batch[1]
        length = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        raise ValueError(
            f"a batch must be a pair (input, target) or a dict with the keys {keys}, "
            f"got a {type(batch).__name__}{length}"
        )


class RegressionTask(_Task):
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
        >>> from lightning.pytorch import Trainer
        >>> from torchmetrics import MeanAbsoluteError
        >>> task = RegressionTask(nn.Linear(3, 1), metrics={"mae": MeanAbsoluteError()})
        >>> trainer = Trainer(max_epochs=20)  # doctest: +SKIP
        >>> trainer.fit(task, train_loader, val_loader)  # doctest: +SKIP
    """

    def compared(self, output: Any, target: Any) -> tuple[Any, Any]:
        """Output and target as they are."""
        return output, target


class SegmentationTask(_Task):
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


class MultiscaleTask(_Task):
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
        >>> task = MultiscaleTask(GaussianPyramid(3), loss)
        >>> len(task(torch.zeros(1, 1, 16, 16)))
        3
    """

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


def _one_cycle(optimizer: Optimizer, num_steps: int) -> OneCycleLR:
    """Warm up to the learning rates of the optimizer, then decay to nothing in `num_steps`."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=num_steps)


def _collect(metrics: Metrics | None) -> MetricCollection:
    if metrics is None:
        return MetricCollection([])
    return MetricCollection(dict(metrics) if isinstance(metrics, Mapping) else metrics)


def _finest(maps: Sequence[Tensor]) -> Tensor:
    return max(maps, key=lambda one: one[0, 0].numel())


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else [one.detach() for one in output]
