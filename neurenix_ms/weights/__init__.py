"""Conversion of models and weights from and to the original projects."""

from neurenix_ms.weights.hits import load_hits
from neurenix_ms.weights.msnet import load_msnet
from neurenix_ms.weights.nif import load_nif
from neurenix_ms.weights.pickles import read_pickle
from neurenix_ms.weights.unet import export_unet, load_unet

__all__ = ["export_unet", "load_hits", "load_msnet", "load_nif", "load_unet", "read_pickle"]
