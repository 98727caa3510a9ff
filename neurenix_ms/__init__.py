"""Multiscale building blocks for PyTorch: models, pooling, fusion and transforms in 1-D, 2-D, 3-D."""

from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.files import load, save
from neurenix_ms.multiscale import (
    AttentionFusion,
    FeatureFusion,
    GaussianPyramid,
    LaplacianPyramid,
    MultiScaleModel,
    MultiScalePooling,
    MultiScaleTransform,
    PyramidDownsample,
    PyramidFusion,
    PyramidNetwork,
    PyramidPooling,
    Rescale,
    ScaleFusion,
    SpatialPyramidPooling,
    UNet,
    UNetDecoder,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionFusion",
    "FeatureFusion",
    "GaussianPyramid",
    "LaplacianPyramid",
    "MultiScaleModel",
    "MultiScalePooling",
    "MultiScaleTransform",
    "PyramidDownsample",
    "PyramidFusion",
    "PyramidNetwork",
    "PyramidPooling",
    "Rescale",
    "ScaleFusion",
    "SpatialPyramidPooling",
    "UNet",
    "UNetDecoder",
    "enable_gradient_checkpointing",
    "load",
    "save",
]
