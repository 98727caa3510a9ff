"""Limits of CPU time that a slow machine is allowed to exceed in proportion."""

import time

ORDINARY = 0.065  # what `counting_time` returns on the machines that the limits are for


def counting_time() -> float:
    """CPU seconds for a fixed loop in Python."""
    start = time.process_time()
    total = 0
    for i in range(2_000_000):
        total += i
    return time.process_time() - start


def is_within(spent: float, seconds: float) -> bool:
    """Whether `spent` CPU seconds are at most `seconds` of a machine of ordinary speed.

    The speed is measured only when the limit is exceeded.
    """
    return spent < seconds or spent < seconds * counting_time() / ORDINARY
