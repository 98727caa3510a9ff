"""Networks in files, for several subcommands."""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def network_of(path: str) -> "nn.Module":
    """Return the network of a file of `save` or a folder of `save_pretrained`, in evaluation."""
    from neurenix_ms.files import load

    if Path(path).is_dir():
        from neurenix_ms.sharing import from_pretrained

        return from_pretrained(path).eval()
    if not Path(path).exists():
        raise ValueError(f"FILE must be a file or folder that exists, got {path}")
    return load(path).eval()


def lengths(text: str) -> list[int]:
    """Return integers of at least 1 between commas or crosses: 64x48 or 64,48."""
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentTypeError(f"must be lengths such as 64x48, got {text!r}")
    return list(map(int, parts))
