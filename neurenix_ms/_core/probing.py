"""A copy of a network that runs on tensors without memory, to find the shapes of its outputs."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

FAKE_TENSOR_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@contextmanager
def memoryless_copy(network: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of a network, in evaluation mode, that runs on fake tensors.

    Fake tensors have a shape and no data, so inputs of any size cost neither memory nor arithmetic.
    The network itself does not change: its parameters, statistics and modes stay as they are, and so
    does the global random generator. New tensors in the context are fake too. A network whose control
    flow depends on values raises an exception of torch when the copy is called.

    Args:
        network: Any module that can be copied by `copy.deepcopy`.

    Examples:
        >>> with memoryless_copy(nn.Conv2d(3, 8, 3, stride=2)) as copied:
        ...     tuple(copied(torch.empty(1, 3, 40_001, 101)).shape)
        (1, 8, 20000, 50)
    """
    fake = (p.fake_mode for p in network.parameters() if isinstance(p, FakeTensor))
    mode = next(fake, None) or FakeTensorMode(allow_non_fake_inputs=True)
    was_disabled, FAKE_TENSOR_LOG.disabled = FAKE_TENSOR_LOG.disabled, True
    try:
        # modes outside that count bytes and operations must not count those of fake tensors
        with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.no_grad():
            with FakeCopyMode(mode):
                copied = copy.deepcopy(network)
            copied.eval()
            with mode:
                yield copied
    finally:
        FAKE_TENSOR_LOG.disabled = was_disabled
