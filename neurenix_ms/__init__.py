"""Multiscale building blocks for PyTorch: models, pooling, fusion and transforms in 1-D, 2-D, 3-D."""

import importlib
from typing import TYPE_CHECKING, Any

from neurenix_ms._core import moved
from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.files import load, save
from neurenix_ms.layers import FiLM, Level, LevelFeatures, SinusoidalEmbedding
from neurenix_ms.multiscale import (
    AtrousPyramidPooling,
    AttentionFusion,
    BidirectionalFusion,
    BlurPool,
    DeepLabHead,
    FeatureFusion,
    GaussianPyramid,
    HighResolutionNetwork,
    InverseWaveletTransform,
    LaplacianPyramid,
    MultiScaleModel,
    MultiScalePooling,
    MultiScaleTransform,
    NestedUNet,
    NestedUNetDecoder,
    PixelShuffle,
    PixelUnshuffle,
    PyramidDownsample,
    PyramidFusion,
    PyramidNetwork,
    PyramidPooling,
    Rescale,
    ScaleFusion,
    SpatialPyramidPooling,
    SpectralMixing,
    UNet,
    UNetDecoder,
    UPerHead,
    WaveletTransform,
)

if TYPE_CHECKING:
    from neurenix_ms import (
        backbones as backbones,
    )
    from neurenix_ms import (
        bench as bench,
    )
    from neurenix_ms import (
        checkpointing as checkpointing,
    )
    from neurenix_ms import (
        compat as compat,
    )
    from neurenix_ms import (
        conservation as conservation,
    )
    from neurenix_ms import (
        datasets as datasets,
    )
    from neurenix_ms import (
        execution as execution,
    )
    from neurenix_ms import (
        files as files,
    )
    from neurenix_ms import (
        implicit as implicit,
    )
    from neurenix_ms import (
        layers as layers,
    )
    from neurenix_ms import (
        meter as meter,
    )
    from neurenix_ms import (
        msnet as msnet,
    )
    from neurenix_ms import (
        multiscale as multiscale,
    )
    from neurenix_ms import (
        prediction as prediction,
    )
    from neurenix_ms import (
        recipes as recipes,
    )
    from neurenix_ms import (
        registry as registry,
    )
    from neurenix_ms import (
        sharing as sharing,
    )
    from neurenix_ms import (
        timestepping as timestepping,
    )
    from neurenix_ms import (
        training as training,
    )
    from neurenix_ms import (
        weights as weights,
    )
    from neurenix_ms.backbones import Backbone
    from neurenix_ms.execution import TiledModel
    from neurenix_ms.implicit import NIF
    from neurenix_ms.msnet import MSNet
    from neurenix_ms.registry import create, list_models
    from neurenix_ms.sharing import from_pretrained
    from neurenix_ms.timestepping import HierarchicalTimeStepper

__version__ = "0.1.0"

__all__ = [
    "NIF",
    "AtrousPyramidPooling",
    "AttentionFusion",
    "Backbone",
    "BidirectionalFusion",
    "BlurPool",
    "DeepLabHead",
    "FeatureFusion",
    "FiLM",
    "GaussianPyramid",
    "HierarchicalTimeStepper",
    "HighResolutionNetwork",
    "InverseWaveletTransform",
    "LaplacianPyramid",
    "Level",
    "LevelFeatures",
    "MSNet",
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
    "SinusoidalEmbedding",
    "SpatialPyramidPooling",
    "SpectralMixing",
    "TiledModel",
    "UNet",
    "UNetDecoder",
    "UPerHead",
    "WaveletTransform",
    "create",
    "enable_gradient_checkpointing",
    "from_pretrained",
    "list_models",
    "load",
    "save",
]

# imported when first used
_SUBMODULES = {
    "backbones",
    "bench",
    "checkpointing",
    "compat",
    "conservation",
    "datasets",
    "execution",
    "files",
    "implicit",
    "layers",
    "meter",
    "msnet",
    "multiscale",
    "prediction",
    "recipes",
    "registry",
    "sharing",
    "timestepping",
    "training",
    "weights",
}
_LAZY = {
    "Backbone": "backbones",
    "HierarchicalTimeStepper": "timestepping",
    "MSNet": "msnet",
    "NIF": "implicit",
    "TiledModel": "execution",
    "create": "registry",
    "from_pretrained": "sharing",
    "list_models": "registry",
}

moved.install()


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *__all__})
