"""Training from a config: tasks, data in files, and what `neurenix-ms fit` runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neurenix_ms.fitting.density import Density, DensityMaps
from neurenix_ms.fitting.fields import Field, Points
from neurenix_ms.fitting.images import Images
from neurenix_ms.fitting.running import Fitted, fit
from neurenix_ms.fitting.tasks import Regression, Segmentation
from neurenix_ms.fitting.trajectories import Hierarchy, Trajectories

if TYPE_CHECKING:
    from neurenix_ms.fitting.conduction import Conduction, RockVolume

FROM_RECIPES = ("Conduction", "RockVolume")  # need the extra `demo`
__all__ = [
    "Conduction",
    "Density",
    "DensityMaps",
    "Field",
    "Fitted",
    "Hierarchy",
    "Images",
    "Points",
    "Regression",
    "RockVolume",
    "Segmentation",
    "Trajectories",
    "fit",
]
# by their short names in configs
CLASSES = tuple(name for name in __all__ if name not in ("Fitted", "fit"))


def __getattr__(name: str) -> Any:
    # import the recipes only for a rock, because the others need no solver
    if name in FROM_RECIPES:
        return getattr(import_module("neurenix_ms.fitting.conduction"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
