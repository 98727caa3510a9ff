"""A test of whether hooks observe or replace the call of a module."""

import torch
from torch import nn
from torch.nn.modules import module as global_hooks


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
    return any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or "forward" in m.__dict__
        for m in modules
    )


def is_watched() -> bool:
    """Return whether every call of torch is watched, as while it is found how a model runs in tiles."""
    return torch._C._len_torch_function_stack() > 0
