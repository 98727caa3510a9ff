"""Decorators that make `torch.fx` record code that reads shapes as a single call.

`torch.fx.symbolic_trace` runs a model on placeholders that have no shape. A function or module whose
Python code reads a shape is therefore recorded as one call, and runs as usual in the traced module.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.fx import Proxy

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


def one_call(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """Record `function` as one `call_function` node under `torch.fx`; call it otherwise."""

    @functools.wraps(function)
    def call(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        given = args or tuple(kwargs.values())
        # the first argument is a tensor, or the call is compiled: torch.fx does not trace it
        if type(given[0]) is Tensor or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        proxy = placeholder_in((*args, *kwargs.values()))
        if proxy is None:
            return function(*args, **kwargs)
        return cast(Result, proxy.tracer.create_proxy("call_function", call, args, kwargs))

    return call


def one_module(forward: Callable[..., Result]) -> Callable[..., Result]:
    """Record the module of this `forward` as one `call_module` node under `torch.fx`."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any) -> Result:
        if type(args[0]) is Tensor or torch.compiler.is_compiling():
            return forward(self, *args)
        proxy = placeholder_in(args)
        if proxy is None:
            return forward(self, *args)
        tracer: Any = proxy.tracer
        return cast(
            Result, tracer.create_proxy("call_module", tracer.path_of_module(self), args, {})
        )

    return call


def placeholder_in(args: Sequence[Any]) -> Proxy | None:
    """Return the first `torch.fx.Proxy` among arguments and lists of them, or None."""
    for value in args:
        kind = type(value)
        if kind is Tensor or kind is int or kind is torch.Size:  # the most frequent types
            continue
        if isinstance(value, Proxy):
            return value
        if kind is list or kind is tuple:
            found = placeholder_in(value)
            if found is not None:
                return found
    return None


def entries(values: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """Return the `count` entries of a list; a placeholder of a list does not know its length."""
    if isinstance(values, Proxy):
        return [values[i] for i in range(count)]
    return values


def sizes_are_open() -> bool:
    """Return whether the call is traced or compiled, so that sizes may differ in later calls."""
    return torch.compiler.is_compiling() or is_jit_tracing()


def is_jit_tracing() -> bool:
    """Return whether `torch.jit.trace` records the calls."""
    return torch._C._get_tracing_state() is not None


def is_known(condition: Any) -> bool:
    """Return whether a condition on sizes holds for every input of a model that is being compiled."""
    # imported here because it takes a fifth of the time of `import torch`
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
