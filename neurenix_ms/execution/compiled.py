"""Run the plain form of compiled modules, which would be compiled anew for tiles of every size."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

COMPILER = "torch._dynamo.eval_frame"


def plain_module(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was called with, or the module itself."""
    compiled = getattr(sys.modules.get(COMPILER), "OptimizedModule", ())
    while isinstance(model, compiled):
        model = model._orig_mod
    return model


@contextmanager
def uncompiled() -> Iterator[None]:
    """While it is entered, compiled modules and functions run as they were written."""
    if COMPILER not in sys.modules:  # then nothing can be compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
