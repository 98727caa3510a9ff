"""Exact tiled inference and training for inputs that do not fit into memory."""

from neurenix_ms.execution.gradients import accumulate_gradients
from neurenix_ms.execution.plan.footprint import Footprint, footprint
from neurenix_ms.execution.run.ranks import RankError
from neurenix_ms.execution.tiling import TiledModel

__all__ = ["Footprint", "RankError", "TiledModel", "accumulate_gradients", "footprint"]
