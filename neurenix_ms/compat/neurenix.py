"""The names of the Neurenix documentation: `from neurenix_ms.compat import neurenix as nx`."""

from collections.abc import Sequence

import torch
from torch import mean, nn, optim
from torch.utils import data

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.files import load, save

__all__ = ["Tensor", "data", "enable_gradient_checkpointing", "load", "mean", "nn", "optim", "save"]


@checked
def Tensor(shape: Sequence[int]) -> torch.Tensor:  # noqa: N802  (the name on the pages)
    """Return a float32 tensor of zeros.

    Args:
        shape: Its shape.

    Examples:
        >>> Tensor(shape=(1, 3, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """
    return torch.zeros(check_integers("shape", shape, minimum=0), dtype=torch.float32)
