"""The switch for gradient checkpointing: cheap results are forgotten and made again in backward.

What a backward pass needs of a convolution network is mostly the inputs of its convolutions, and
between two convolutions stand only cheap operations (normalization, activation, upsampling,
concatenation). Inside `enable_gradient_checkpointing` those results are replaced, in the graph, by a
recipe: the function and the convolution output it started from. Backward makes the value again when
it is needed. No convolution runs twice, and the graph is that of a plain run, so gradients are equal
to the last bit (basis: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

Under `torch.compile` whole blocks are marked for recomputation instead, and modules of others, in
which the cheap operations are not known, run under `torch.utils.checkpoint`.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.recomputation import Kept, Notebook, statistics_kept, unpack

_enabled: ContextVar[bool] = ContextVar("gradient_checkpointing", default=False)
_enabled_for_compiled = False
_entered: list["enable_gradient_checkpointing"] = []
_notebook: ContextVar["Notebook | None"] = ContextVar("recipes_of_this_forward", default=None)

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")
Model = TypeVar("Model")


class enable_gradient_checkpointing:  # noqa: N801  (a context manager is called like a function)
    """Trade a little time for memory: blocks recompute cheap maps in backward instead of keeping them.

    Use it around the forward pass when training does not fit into memory; backward may happen
    outside. It reaches the blocks of UNet, UNetDecoder and PyramidNetwork, and the base model of a
    MultiScaleModel. Output, gradients and running statistics are those of a plain run. It nests,
    holds for the current thread or task only, and has no effect without grad mode. Do not switch a
    model between train and eval from forward to backward: the maps made again would differ.

    A compiled model recompiles once when it is first called inside; entering it inside a compiled
    function is refused.

    Args:
        enabled: False switches it off for the inner part of a surrounding use.

    Raises:
        RuntimeError: If it is entered inside a function that is being compiled or exported.

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
        _tell_compiled()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _enabled.reset(self._tokens.pop())
        _entered.remove(self)
        _tell_compiled()


def _tell_compiled() -> None:
    """Let compiled code see the switch: dynamo guards on a global, but reads no context variable.

    The global is that of the process. Another thread that is compiling meanwhile may recompute too,
    which costs time and changes no result.
    """
    global _enabled_for_compiled
    _enabled_for_compiled = bool(_entered) and _entered[-1].enabled


def recomputes(
    forward: Callable[Concatenate[Model, Inputs], Result],
) -> Callable[Concatenate[Model, Inputs], Result]:
    """Let the results that `recomputed` makes in `forward` be forgotten while the switch is on."""

    @functools.wraps(forward)
    def switched(self: Model, /, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        if torch.compiler.is_compiling() or not _wanted() or _notebook.get() is not None:
            return forward(self, *args, **kwargs)
        notebook = Notebook()
        token = _notebook.set(notebook)
        try:
            with torch.autograd.graph.saved_tensors_hooks(notebook.pack, unpack):
                return forward(self, *args, **kwargs)
        finally:
            _notebook.reset(token)
            notebook.recipes.clear()  # the graph holds on to its hooks, and they to the notebook

    return switched


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a cheap `function`; while the switch is on, what it returns is made again in backward."""
    notebook = None if torch.compiler.is_compiling() else _notebook.get()
    return function(*inputs) if notebook is None else notebook.record(function, inputs)


def is_recorded() -> bool:
    """Return whether what `recomputed` returns here is made again in backward."""
    return not torch.compiler.is_compiling() and _notebook.get() is not None


def checkpointed(module: nn.Module, *inputs: Tensor, foreign: bool = False) -> Tensor:
    """Run a block; while the switch is on and it cannot forget by itself, under a checkpoint.

    A block of ours forgets by itself, except while it is compiled; a foreign one never does, and may
    write over its inputs, which stay as they are.
    """
    compiling = torch.compiler.is_compiling()
    if not (compiling or foreign) or not _wanted():
        return call_intact(module, *inputs) if foreign else module(*inputs)
    # a foreign block gets its inputs a second time in backward
    run = functools.partial(call_intact, module) if foreign else module
    if compiling:  # the compiled graph holds one update of the statistics, however often it is run
        return checkpoint(run, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(module)

    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)


def kept(x: Tensor) -> Tensor | Kept:
    """Return `x`; while the switch is on, and if `x` can be made again, what `tensor_of` needs."""
    notebook = None if torch.compiler.is_compiling() else _notebook.get()
    found = None if notebook is None else notebook.kept(x)
    return x if found is None else found


def _wanted() -> bool:
    enabled = _enabled_for_compiled if torch.compiler.is_compiling() else _enabled.get()
    return enabled and torch.is_grad_enabled()
