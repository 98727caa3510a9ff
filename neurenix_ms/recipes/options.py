"""A command line that was read in; the same, or what is wrong with its numbers, out."""

import argparse


def check_at_least(
    parser: argparse.ArgumentParser, options: argparse.Namespace, **least: float
) -> None:
    """End the program with a message if a number is too small.

    Args:
        parser: Ends it.
        options: What was read; None and several numbers are understood.
        least: The smallest value of each, by its name.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if values and min(values) < bound:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must be at least {bound}, got {min(values)}")
