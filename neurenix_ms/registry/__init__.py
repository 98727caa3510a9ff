"""Every public network by name, with presets that are plain data."""

from neurenix_ms.registry.building import create, get_preset, list_models
from neurenix_ms.registry.preset import Preset

__all__ = ["Preset", "create", "get_preset", "list_models"]
