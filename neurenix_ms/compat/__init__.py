"""Spellings of the original projects, so that their examples run with the import lines changed."""

from neurenix_ms.compat import ms_net, neurenix

__all__ = ["ms_net", "neurenix"]
