"""Losses and Lightning modules that take any network; the latter need the extra `train`."""

from typing import TYPE_CHECKING, Any

from neurenix_ms.conservation import MassConservationLoss
from neurenix_ms.training.inference import MultiScaleInference
from neurenix_ms.training.losses import MultiscaleLoss
from neurenix_ms.training.supervision import DeepSupervisionLoss, DiceLoss

if TYPE_CHECKING:
    from neurenix_ms.training.task import MultiscaleTask, RegressionTask, SegmentationTask

TASKS = ("MultiscaleTask", "RegressionTask", "SegmentationTask")
__all__ = [
    "DeepSupervisionLoss",
    "DiceLoss",
    "MassConservationLoss",
    "MultiScaleInference",
    "MultiscaleLoss",
    "MultiscaleTask",
    "RegressionTask",
    "SegmentationTask",
]


def __getattr__(name: str) -> Any:
    # Lightning is loaded when a task is asked for: the losses work without it
    if name in TASKS:
        from neurenix_ms.training import task

        return getattr(task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
