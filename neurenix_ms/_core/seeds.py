"""Random numbers that depend only on the seed of a run and the number of an epoch or a sample.

So a resumed run, or one with other workers, draws the same numbers as an uninterrupted one.
"""

import torch
from torch import Tensor

STRIDE = 1_000_003  # between the seeds of two runs


def mixed_seed(seed: int, number: int) -> int:
    """Return the seed of an epoch or a sample of a run."""
    return STRIDE * seed + number


def generator_of(seed: int, number: int) -> torch.Generator:
    """Return a generator for an epoch or a sample of a run."""
    return torch.Generator().manual_seed(mixed_seed(seed, number))


def order_of(count: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers below `count` in the order of an epoch."""
    return torch.randperm(count, generator=generator_of(seed, epoch))
