"""Any network as "image in, list of maps out", finest first, with channels and strides measured."""

from neurenix_ms.backbones.backbone import Backbone
from neurenix_ms.backbones.inflation import inflate

__all__ = ["Backbone", "inflate"]
