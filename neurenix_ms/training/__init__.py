"""Losses and Lightning modules for any network; the latter need the extra `train`."""

from typing import TYPE_CHECKING, Any

from neurenix_ms._core.deprecation import renamed_classes
from neurenix_ms.conservation import MassConservationLoss
from neurenix_ms.training.inference import MultiScaleInference
from neurenix_ms.training.losses import MultiScaleLoss
from neurenix_ms.training.similarity import MultiScaleStructuralSimilarity
from neurenix_ms.training.spectral_loss import SpectralLoss
from neurenix_ms.training.supervision import DeepSupervisionLoss, DiceLoss

if TYPE_CHECKING:
    from neurenix_ms.training.task import MultiScaleTask, RegressionTask, SegmentationTask

TASKS = ("MultiScaleTask", "RegressionTask", "SegmentationTask")
__all__ = [
    "DeepSupervisionLoss",
    "DiceLoss",
    "MassConservationLoss",
    "MultiScaleInference",
    "MultiScaleLoss",
    "MultiScaleStructuralSimilarity",
    "MultiScaleTask",
    "RegressionTask",
    "SegmentationTask",
    "SpectralLoss",
]


_renamed = renamed_classes(
    __name__, {"MultiscaleLoss": "MultiScaleLoss", "MultiscaleTask": "MultiScaleTask"}
)


def __getattr__(name: str) -> Any:
    # import Lightning only for a task, because the losses work without it
    if name in TASKS:
        from neurenix_ms.training import task

        return getattr(task, name)
    return _renamed(name)
