"""How a model is run when its map is larger than the memory: in tiles, with the result of the whole."""

from neurenix_ms.execution.gradients import accumulate_gradients
from neurenix_ms.execution.plan.footprint import Footprint, footprint
from neurenix_ms.execution.tiling import TiledModel

__all__ = ["Footprint", "TiledModel", "accumulate_gradients", "footprint"]
