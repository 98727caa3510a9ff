"""Implicit neural fields of parameters and coordinates, their derivatives, and pruning."""

from neurenix_ms._core.deprecation import renamed_classes
from neurenix_ms.implicit.compacting import compact
from neurenix_ms.implicit.densifying import densify
from neurenix_ms.implicit.derivatives import gradient, hessian, laplacian, time_derivative
from neurenix_ms.implicit.last_layer import LastLayerNIF
from neurenix_ms.implicit.nif import NIF, MultiScaleNIF
from neurenix_ms.implicit.normalizer import Normalizer
from neurenix_ms.implicit.points import PointCloud
from neurenix_ms.implicit.pruning import (
    PruningRound,
    PruningSchedule,
    prune_and_retrain,
    prune_nodes,
    sparsity,
)

__all__ = [
    "NIF",
    "LastLayerNIF",
    "MultiScaleNIF",
    "Normalizer",
    "PointCloud",
    "PruningRound",
    "PruningSchedule",
    "compact",
    "densify",
    "gradient",
    "hessian",
    "laplacian",
    "prune_and_retrain",
    "prune_nodes",
    "sparsity",
    "time_derivative",
]

__getattr__ = renamed_classes(__name__, {"Normaliser": "Normalizer"})
