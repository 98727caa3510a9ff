"""Arguments of several subcommands."""

from pathlib import Path


def existing(path: str) -> Path:
    """Return the path of FILE; raise unless it exists."""
    if not Path(path).exists():
        raise ValueError(f"FILE must be a file or folder that exists, got {path}")
    return Path(path)
