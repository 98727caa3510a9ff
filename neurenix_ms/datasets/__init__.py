"""Arrays on disk, crops and windows of them, and physical problems computed by solvers."""

from neurenix_ms.datasets.arrays import open_array
from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.datasets.crops import RandomCrops, Windows
from neurenix_ms.datasets.ocean import DriftDensity
from neurenix_ms.datasets.porous import PorousConduction, effective_conductivity
from neurenix_ms.datasets.scaled_crop import RandomScaledCrop
from neurenix_ms.datasets.scanned import ScannedConduction
from neurenix_ms.datasets.smoothing import SmoothedTrajectories, smooth_trajectories
from neurenix_ms.datasets.waves import kuramoto_sivashinsky, travelling_wave, turbulence2d
from neurenix_ms.datasets.writers import create_array

__all__ = [
    "DriftDensity",
    "PorousConduction",
    "RandomCrops",
    "RandomScaledCrop",
    "SampleCache",
    "ScannedConduction",
    "SmoothedTrajectories",
    "Windows",
    "create_array",
    "effective_conductivity",
    "kuramoto_sivashinsky",
    "open_array",
    "smooth_trajectories",
    "travelling_wave",
    "turbulence2d",
]
