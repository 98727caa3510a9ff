"""Datasets of physical problems, computed on demand by solvers and cached on disk."""

from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.datasets.ocean import DriftDensity
from neurenix_ms.datasets.porous import PorousConduction, effective_conductivity
from neurenix_ms.datasets.waves import kuramoto_sivashinsky, travelling_wave, turbulence2d

__all__ = [
    "DriftDensity",
    "PorousConduction",
    "SampleCache",
    "effective_conductivity",
    "kuramoto_sivashinsky",
    "travelling_wave",
    "turbulence2d",
]
