"""The multiscale API: models over several resolutions and the blocks they are composed of."""

from neurenix_ms.multiscale.fusion import AttentionFusion, FeatureFusion, PyramidFusion, ScaleFusion
from neurenix_ms.multiscale.models import MultiScaleModel, PyramidNetwork
from neurenix_ms.multiscale.pooling import (
    MultiScalePooling,
    PyramidPooling,
    SpatialPyramidPooling,
)
from neurenix_ms.multiscale.pyramids import GaussianPyramid, LaplacianPyramid
from neurenix_ms.multiscale.transforms import MultiScaleTransform, PyramidDownsample, Rescale
from neurenix_ms.multiscale.unet import UNet, UNetDecoder

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
]
