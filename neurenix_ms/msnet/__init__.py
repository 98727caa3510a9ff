"""MS-Net, a coarse-to-fine network for volumes that are too large for a network at one scale."""

from neurenix_ms.msnet.network import MSNet
from neurenix_ms.msnet.volumes import coarsen, random_volume, scale_masks

__all__ = ["MSNet", "coarsen", "random_volume", "scale_masks"]
