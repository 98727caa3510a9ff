"""Tests of whether faster paths may be taken: calls that are observed, tensors that are subclasses."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as global_hooks

DENSE = (Tensor, nn.Parameter)
_estimating: ContextVar[bool] = ContextVar("memory_is_estimated", default=False)


def is_observed(*modules: nn.Module) -> bool:
    """Return whether one of `modules` has hooks or a replaced `forward`.

    A faster path that does not call `module(x)` is correct only where nothing is attached to that call:
    no forward hook or pre-hook of the module itself or of all modules (which `fully_shard`, profilers
    and feature extractors use), and no `forward` replaced on the instance.
    """
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    if global_hooks._global_backward_hooks or global_hooks._global_backward_pre_hooks:
        return True
    for m in modules:  # a loop, because small blocks are called often
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
        if "forward" in m.__dict__:
            return True
    return False


def is_dense(x: Tensor) -> bool:
    """Return whether a tensor holds its values itself, and is no subclass that interprets calls.

    Tensors without memory are none, unless they stand for real ones while memory is estimated: then
    the faster paths are to be taken that the real ones take.
    """
    if type(x) in DENSE:
        return True
    return not torch.compiler.is_compiling() and _estimating.get() and isinstance(x, FakeTensor)


def holds_values(x: Tensor) -> bool:
    """Return whether a tensor has values, not only a shape as while memory is predicted."""
    return not (x.is_meta or isinstance(x, FakeTensor))


@contextmanager
def estimating_memory() -> Iterator[None]:
    """Let tensors without memory take the paths that real ones take, while the context is entered."""
    token = _estimating.set(True)
    try:
        yield
    finally:
        _estimating.reset(token)


def is_watched() -> bool:
    """Return whether every call of torch is watched, as while it is found how a model runs in tiles."""
    return torch._C._len_torch_function_stack() > 0
