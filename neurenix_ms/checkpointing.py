"""Gradient checkpointing: a context manager in which backward recomputes cheap operations.

The backward pass of a convolution network needs mostly the inputs of its convolutions, and between
two convolutions there are only cheap operations (normalization, activation, upsampling,
concatenation). Inside `enable_gradient_checkpointing` the graph does not keep the results of these
operations. It keeps the function and the convolution output that the function was applied to, and
backward computes the result again when it is needed. No convolution runs twice, and the graph is that
of a plain run, so gradients are equal to the last bit (basis: Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost").

Under `torch.compile` whole blocks are marked for recomputation instead. User modules, in which the
cheap operations are not known, run under `torch.utils.checkpoint`.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.recomputation import Kept, Recorder, statistics_kept, unpack

_enabled: ContextVar[bool] = ContextVar("gradient_checkpointing", default=False)
_enabled_for_compiled = False
_entered: list["enable_gradient_checkpointing"] = []
_recorder: ContextVar["Recorder | None"] = ContextVar("recorder_of_this_forward", default=None)

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")
Model = TypeVar("Model")


class enable_gradient_checkpointing:  # noqa: N801  (a context manager is called like a function)
    """Save memory in training: blocks recompute cheap feature maps in backward instead of keeping them.

    Use it around the forward pass when training does not fit into memory; backward may run outside. It
    applies to the blocks of UNet, UNetDecoder and PyramidNetwork, and to the base model of a
    MultiScaleModel. Output, gradients and running statistics are those of a plain run. Contexts can be
    nested, hold for the current thread or task only, and have no effect without grad mode. Do not
    switch a model between train and eval mode from forward to backward, because the recomputed feature
    maps would differ.

    A compiled model is recompiled once, when it is first called inside the context.

    Args:
        enabled: False disables checkpointing in an inner context.

    Raises:
        RuntimeError: If the context is entered inside a function that is being compiled or exported.

    Examples:
        >>> from neurenix_ms import UNet
        >>> from neurenix_ms.meter import peak_tensor_bytes
        >>> model = UNet(1, 1, features=[4, 8], norm="group", remember=False)
        >>> def step(enabled):
        ...     with enable_gradient_checkpointing(enabled):
        ...         loss = model(torch.ones(2, 1, 32, 32)).square().mean()
        ...     loss.backward()
        >>> plain, spared = (peak_tensor_bytes(lambda: step(on)) for on in (False, True))
        >>> spared < 0.7 * plain
        True
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> Self:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "enable_gradient_checkpointing must be entered outside the compiled function, "
                "got entered inside it"
            )
        self._tokens.append(_enabled.set(self.enabled))
        _entered.append(self)
        _update_compiled()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _enabled.reset(self._tokens.pop())
        _entered.remove(self)
        _update_compiled()


def _update_compiled() -> None:
    """Copy the state to a global variable for compiled code: dynamo cannot read context variables.

    The global holds for all threads. Another thread that compiles at the same time may recompute too,
    which costs time and changes no result.
    """
    global _enabled_for_compiled
    _enabled_for_compiled = bool(_entered) and _entered[-1].enabled


def recomputes(
    forward: Callable[Concatenate[Model, Inputs], Result],
) -> Callable[Concatenate[Model, Inputs], Result]:
    """Decorate a `forward`, so that results of `recomputed` in it are dropped under checkpointing."""

    @functools.wraps(forward)
    def call(self: Model, /, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        if torch.compiler.is_compiling() or not _wanted() or _recorder.get() is not None:
            return forward(self, *args, **kwargs)
        recorder = Recorder()
        token = _recorder.set(recorder)
        try:
            with torch.autograd.graph.saved_tensors_hooks(recorder.pack, unpack):
                return forward(self, *args, **kwargs)
        finally:
            _recorder.reset(token)
            recorder.recomputations.clear()  # the graph keeps its hooks, which keep the recorder

    return call


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a cheap `function`; under checkpointing its result is recomputed in backward."""
    recorder = None if torch.compiler.is_compiling() else _recorder.get()
    return function(*inputs) if recorder is None else recorder.record(function, inputs)


def is_recorded() -> bool:
    """Return whether the results of `recomputed` are recomputed in backward here."""
    return not torch.compiler.is_compiling() and _recorder.get() is not None


def checkpointed(module: nn.Module, *inputs: Tensor, foreign: bool = False, **named: Any) -> Tensor:
    """Run a block, under `torch.utils.checkpoint` if it does not recompute cheap results by itself.

    A block of this package does so by itself, except while it is compiled. A module of the user
    (`foreign`) never does, and it may write over its inputs, which are protected.
    """
    compiling = torch.compiler.is_compiling()
    if not (compiling or foreign) or not _wanted():
        run = functools.partial(call_intact, module) if foreign else module
        return run(*inputs, **named)
    # backward passes the inputs to a user module again
    run = functools.partial(call_intact, module) if foreign else module
    if compiling:  # a compiled graph contains one update of the statistics, also with recomputation
        return checkpoint(run, *inputs, use_reentrant=False, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(module)

    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, **named)


def kept(x: Tensor) -> Tensor | Kept:
    """Return `x`, or its recomputation for `tensor_of` if `x` is recomputed under checkpointing."""
    recorder = None if torch.compiler.is_compiling() else _recorder.get()
    found = None if recorder is None else recorder.kept(x)
    return x if found is None else found


def _wanted() -> bool:
    enabled = _enabled_for_compiled if torch.compiler.is_compiling() else _enabled.get()
    return enabled and torch.is_grad_enabled()
