"""Interfaces of the original projects, so that their examples run with other import lines."""

from neurenix_ms.compat import ms_net, neurenix

__all__ = ["ms_net", "neurenix"]
