"""Run the original form of compiled modules, which would be compiled again for every tile size."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

COMPILER = "torch._dynamo.eval_frame"


def plain_module(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` was called with, or the module itself."""
    compiled = getattr(sys.modules.get(COMPILER), "OptimizedModule", ())
    while isinstance(model, compiled):
        model = model._orig_mod
    return model


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules and functions eagerly inside the context."""
    if COMPILER not in sys.modules:  # nothing can be compiled then, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
