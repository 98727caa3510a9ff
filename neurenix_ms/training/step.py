"""Base class of the Lightning tasks: training step, logging, optimizer, schedule and tiles."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.execution import TiledModel
from neurenix_ms.training.tiles import domain_mesh, loss_in_tiles

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


class Task(LightningModule):
    """Base class of all tasks: steps, logging, optimizer and schedule.

    Shape:
        That of the model.
    """

    @checked
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
        condition_key: str | None = None,
        tile_size: int | Sequence[int] | None = None,
        whole: Literal["auto"] | Sequence[str] = "auto",
        domain_size: int | None = None,
    ) -> None:
        super().__init__()
        if domain_size is not None and domain_size < 1:
            raise ValueError(f"domain_size must be at least 1, got {domain_size}")
        if domain_size is not None and tile_size is None:
            raise ValueError(f"domain_size needs a tile_size, got domain_size {domain_size}")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        self.model = model
        self.loss = self._default_loss() if loss is None else loss
        self.metrics = _collect(metrics)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.input_key = input_key
        self.target_key = target_key
        self.condition_key = condition_key
        self.tile_size = tile_size
        self.whole = whole
        self.domain_size = domain_size
        self._mesh: DeviceMesh | None = None
        self.train_metrics = self.metrics.clone(prefix="train_")
        self.val_metrics = self.metrics.clone(prefix="val_")
        self.test_metrics = self.metrics.clone(prefix="test_")

    def _default_loss(self) -> Loss:
        return nn.MSELoss()

    def compared(self, output: Any, target: Any) -> tuple[Any, Any]:
        """Return output and target in the form that the metrics compare."""
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
        """Return the output for a batch, which may be an input tensor without a target."""
        if isinstance(batch, Tensor):
            return self._output(batch)
        return self._output(self._unpack(batch)[0], *self._condition(batch))

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
        args = self._condition(batch)
        if stage == "train" and self.tile_size is not None:
            output = None  # the whole output is never computed
            choices = self.tile_size, self.whole, self._domain()
            loss = loss_in_tiles(self.model, inputs, target, self.loss, *choices, args=args)
        else:
            output = self._output(inputs, *args)
            loss = call_intact(self.loss, output, target)  # the metrics need both unmodified
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

    def _output(self, inputs: Any, *args: Tensor) -> Any:
        if self.tile_size is None or self.training:
            return self(inputs, *args)
        dims, mesh = inputs.ndim - 2, self._domain()
        tiled = TiledModel(
            self.model, self.tile_size, spatial_dims=dims, whole=self.whole, mesh=mesh
        )
        return tiled(inputs, args=args)

    def _domain(self) -> DeviceMesh | None:
        """Return the ranks that share an input, made once, after the Trainer has started them."""
        if self._mesh is None:
            self._mesh = domain_mesh(self.domain_size, self.device)
        return self._mesh

    def _condition(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the condition of an unpacked batch as further arguments of the model, if it has one."""
        if self.condition_key is None:
            return ()
        return (batch[self.condition_key if isinstance(batch, Mapping) else 1],)

    def _unpack(self, batch: Any) -> tuple[Any, Any]:
        keys: tuple[str, ...] = (self.input_key, self.target_key)
        words = "a pair (input, target)"
        if self.condition_key is not None:
            keys, words = (*keys, self.condition_key), "a triple (input, condition, target)"
        if isinstance(batch, Mapping):
            if not all(key in batch for key in keys):
                raise ValueError(f"a batch must have the keys {keys}, got {list(batch)}")
            return batch[self.input_key], batch[self.target_key]
        if isinstance(batch, list | tuple) and len(batch) == len(keys):
            return batch[0], batch[-1]
        length = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        raise ValueError(
            f"a batch must be {words} or a dict with the keys {keys}, "
            f"got a {type(batch).__name__}{length}"
        )


def _one_cycle(optimizer: Optimizer, num_steps: int) -> OneCycleLR:
    """Warm up to the learning rates of the optimizer, then decay to nearly 0, in `num_steps` steps."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=num_steps)


def _collect(metrics: Metrics | None) -> MetricCollection:
    if metrics is None:
        return MetricCollection([])
    return MetricCollection(dict(metrics) if isinstance(metrics, Mapping) else metrics)


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else [one.detach() for one in output]
