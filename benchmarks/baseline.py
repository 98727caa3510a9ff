"""Which cases are held to the bytes and operations in `baseline.json`: those of this package."""

from pathlib import Path

from benchmarks.peers import PEERS

STORED = Path(__file__).with_name("baseline.json")


def is_ours(variant: str) -> bool:
    """Whether a change of this package can move the figures of a variant."""
    return not variant.startswith(("plain", "torch.", *PEERS))
