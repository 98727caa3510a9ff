"""Losses and Lightning modules that take any network; the latter need the extra `train`."""

from typing import TYPE_CHECKING, Any

from neurenix_ms.training.losses import MultiscaleLoss

if TYPE_CHECKING:
    from neurenix_ms.training.task import MultiscaleTask, RegressionTask, SegmentationTask

TASKS = ("MultiscaleTask", "RegressionTask", "SegmentationTask")
__all__ = ["MultiscaleLoss", "MultiscaleTask", "RegressionTask", "SegmentationTask"]


def __getattr__(name: str) -> Any:
    # Lightning is loaded when a task is asked for: the losses work without it
    if name in TASKS:
        from neurenix_ms.training import task

        return getattr(task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
