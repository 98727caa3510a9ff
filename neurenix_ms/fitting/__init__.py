"""Training from a config: tasks, data in files, and what `neurenix-ms fit` runs."""

from neurenix_ms.fitting.fields import Field, Points
from neurenix_ms.fitting.images import Images
from neurenix_ms.fitting.running import Fitted, fit
from neurenix_ms.fitting.tasks import Regression, Segmentation
from neurenix_ms.fitting.trajectories import Hierarchy, Trajectories

# by their short names in configs
CLASSES = (
    "Field",
    "Hierarchy",
    "Images",
    "Points",
    "Regression",
    "Segmentation",
    "Trajectories",
)
__all__ = ["Fitted", *CLASSES, "fit"]
