"""Training from a config: tasks, data in files, and what `neurenix-ms fit` runs."""

from neurenix_ms.fitting.images import Images
from neurenix_ms.fitting.running import Fitted, fit
from neurenix_ms.fitting.tasks import Regression, Segmentation

CLASSES = ("Images", "Regression", "Segmentation")  # by their short names in configs
__all__ = ["Fitted", "Images", "Regression", "Segmentation", "fit"]
