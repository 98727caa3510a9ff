"""Select the cases whose bytes and FLOPs are checked against `baseline.json`."""

from pathlib import Path

from benchmarks.peers import PEERS

STORED = Path(__file__).with_name("baseline.json")


def is_ours(variant: str) -> bool:
    """Return whether a variant is code of this package."""
    return not variant.startswith(("plain", "torch.", *PEERS))
