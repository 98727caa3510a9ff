"""Arguments of several subcommands."""

from argparse import ArgumentTypeError
from pathlib import Path


def existing(path: str) -> Path:
    """Return the path of FILE; raise unless it exists."""
    if not Path(path).exists():
        raise ValueError(f"FILE must be a file or folder that exists, got {path}")
    return Path(path)


def lengths(text: str) -> list[int]:
    """Return integers of at least 1 between commas or crosses: 64x48 or 64,48."""
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentTypeError(f"must be lengths such as 64x48, got {text!r}")
    return list(map(int, parts))
