"""Checks of command line options."""

import argparse


def check_at_least(
    parser: argparse.ArgumentParser, options: argparse.Namespace, **least: float
) -> None:
    """Exit with an error message if a number is too small.

    Args:
        parser: Parser that exits.
        options: Parsed options: numbers, lists of numbers or None.
        least: The smallest value of each option, by its name.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if values and min(values) < bound:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must be at least {bound}, got {min(values)}")
