"""Layers that networks are built from."""

from neurenix_ms._core.convolution import Conv3d
from neurenix_ms.layers.conditioning import FiLM, SinusoidalEmbedding
from neurenix_ms.layers.levels import Level, LevelFeatures
from neurenix_ms.layers.mlp import MLP

__all__ = ["MLP", "Conv3d", "FiLM", "Level", "LevelFeatures", "SinusoidalEmbedding"]
