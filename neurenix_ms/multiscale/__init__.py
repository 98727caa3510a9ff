"""Models that use several resolutions, and the modules that they are composed of."""

from neurenix_ms.multiscale.atrous import AtrousPyramidPooling
from neurenix_ms.multiscale.attention import AttentionFusion
from neurenix_ms.multiscale.bidirectional import BidirectionalFusion
from neurenix_ms.multiscale.blurring import BlurPool
from neurenix_ms.multiscale.decoder import UNetDecoder
from neurenix_ms.multiscale.fusion import FeatureFusion, ScaleFusion
from neurenix_ms.multiscale.heads import DeepLabHead, UPerHead
from neurenix_ms.multiscale.high_resolution import HighResolutionNetwork
from neurenix_ms.multiscale.models import MultiScaleModel
from neurenix_ms.multiscale.nested_unet import NestedUNet, NestedUNetDecoder
from neurenix_ms.multiscale.pooling import (
    MultiScalePooling,
    PyramidPooling,
    SpatialPyramidPooling,
)
from neurenix_ms.multiscale.pyramid_loss import LaplacianPyramidLoss
from neurenix_ms.multiscale.pyramid_network import PyramidFusion, PyramidNetwork
from neurenix_ms.multiscale.pyramids import GaussianPyramid, LaplacianPyramid
from neurenix_ms.multiscale.shuffling import PixelShuffle, PixelUnshuffle
from neurenix_ms.multiscale.spectral import SpectralMixing
from neurenix_ms.multiscale.transforms import MultiScaleTransform, PyramidDownsample, Rescale
from neurenix_ms.multiscale.unet import UNet
from neurenix_ms.multiscale.wavelets import InverseWaveletTransform, WaveletTransform

__all__ = [
    "AtrousPyramidPooling",
    "AttentionFusion",
    "BidirectionalFusion",
    "BlurPool",
    "DeepLabHead",
    "FeatureFusion",
    "GaussianPyramid",
    "HighResolutionNetwork",
    "InverseWaveletTransform",
    "LaplacianPyramid",
    "LaplacianPyramidLoss",
    "MultiScaleModel",
    "MultiScalePooling",
    "MultiScaleTransform",
    "NestedUNet",
    "NestedUNetDecoder",
    "PixelShuffle",
    "PixelUnshuffle",
    "PyramidDownsample",
    "PyramidFusion",
    "PyramidNetwork",
    "PyramidPooling",
    "Rescale",
    "ScaleFusion",
    "SpatialPyramidPooling",
    "SpectralMixing",
    "UNet",
    "UNetDecoder",
    "UPerHead",
    "WaveletTransform",
]
