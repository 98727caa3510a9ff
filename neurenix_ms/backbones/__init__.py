"""Encoders from any network, which return feature maps finest first with measured strides."""

from neurenix_ms.backbones.backbone import Backbone
from neurenix_ms.backbones.inflation import inflate

__all__ = ["Backbone", "inflate"]
