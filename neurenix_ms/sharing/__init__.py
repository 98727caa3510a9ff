"""Networks in folders that others can read: weights, config and model card, also on a hub."""

from neurenix_ms.sharing.hub import from_pretrained, push_to_hub
from neurenix_ms.sharing.writing import save_pretrained

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
