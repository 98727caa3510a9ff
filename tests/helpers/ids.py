"""Names of the parameters of tests."""

import re


def readable(value: object) -> str:
    """Return the text of a parameter without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
