"""The multiscale API: models over several resolutions and the blocks they are composed of."""

from neurenix_ms.multiscale.atrous import AtrousPyramidPooling
from neurenix_ms.multiscale.attention import AttentionFusion
from neurenix_ms.multiscale.bidirectional import BidirectionalFusion
from neurenix_ms.multiscale.decoder import UNetDecoder
from neurenix_ms.multiscale.fusion import FeatureFusion, ScaleFusion
from neurenix_ms.multiscale.models import MultiScaleModel
from neurenix_ms.multiscale.pooling import (
    MultiScalePooling,
    PyramidPooling,
    SpatialPyramidPooling,
)
from neurenix_ms.multiscale.pyramid_network import PyramidFusion, PyramidNetwork
from neurenix_ms.multiscale.pyramids import GaussianPyramid, LaplacianPyramid
from neurenix_ms.multiscale.transforms import MultiScaleTransform, PyramidDownsample, Rescale
from neurenix_ms.multiscale.unet import UNet

__all__ = [
    "AtrousPyramidPooling",
    "AttentionFusion",
    "BidirectionalFusion",
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
