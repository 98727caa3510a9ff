"""Values of command line options."""

from argparse import ArgumentTypeError


def lengths(text: str) -> list[int]:
    """Return integers of at least 1 between commas or crosses: 64x48 or 64,48."""
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentTypeError(f"must be lengths such as 64x48, got {text!r}")
    return list(map(int, parts))
