"""The switch for gradient checkpointing: cheap results are forgotten and made again in backward.

What a backward pass needs of a convolution network is mostly the inputs of its convolutions, and
between two convolutions stand only cheap operations (normalisation, activation, upsampling,
concatenation). Inside `enable_gradient_checkpointing` those results are replaced, in the graph, by a
recipe: the function and the convolution output it started from. Backward makes the value again when
it is needed. No convolution runs twice, and the graph is that of a plain run, so gradients are equal
to the last bit (basis: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

Under `torch.compile` whole blocks are marked for recomputation instead, and modules of others, in
which the cheap operations are not known, run under `torch.utils.checkpoint`.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neurenix_ms.inplace import call_intact

_enabled: ContextVar[bool] = ContextVar("gradient_checkpointing", default=False)
_enabled_for_compiled = False
_entered: list["enable_gradient_checkpointing"] = []
_notebook: ContextVar["_Notebook | None"] = ContextVar("recipes_of_this_forward", default=None)

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
        notebook = _Notebook()
        token = _notebook.set(notebook)
        try:
            with torch.autograd.graph.saved_tensors_hooks(notebook.pack, _unpack):
                return forward(self, *args, **kwargs)
        finally:
            _notebook.reset(token)
            notebook.recipes.clear()  # the graph holds on to its hooks, and they to the notebook

    return switched


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a cheap `function`; while the switch is on, what it returns is made again in backward."""
    notebook = None if torch.compiler.is_compiling() else _notebook.get()
    return function(*inputs) if notebook is None else notebook.record(function, inputs)


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


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let `module` write to copies of its buffers, so that running it again moves no statistics."""
    owners = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
    for owner, buffers in owners:
        owner._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in owners:
            owner._buffers.update(buffers)


def _wanted() -> bool:
    enabled = _enabled_for_compiled if torch.compiler.is_compiling() else _enabled.get()
    return enabled and torch.is_grad_enabled()


class _Recipe:
    """How a map is made again: a function, and maps or further recipes as its inputs."""

    def __init__(self, function: Callable[..., Tensor], inputs: list["Tensor | _Recipe"]) -> None:
        self.function = function
        self.inputs = inputs
        self.versions = [x._version if isinstance(x, Tensor) else 0 for x in inputs]
        self.autocast = _autocast_state(inputs)
        self.uses = 0
        self.left = 0
        self.value: Tensor | None = None

    def untouched(self) -> bool:
        return all(
            not isinstance(x, Tensor) or x._version == version
            for x, version in zip(self.inputs, self.versions, strict=True)
        )

    def make(self) -> Tensor:
        if self.value is not None:
            return self.value
        if not self.untouched():
            raise RuntimeError(
                "a map needed to recompute another one was modified by an in-place operation; "
                "gradient checkpointing needs it unchanged until backward"
            )
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled))
            if isinstance(self.function, nn.Module):
                stack.enter_context(statistics_kept(self.function))
            return self.function(*[x.make() if isinstance(x, _Recipe) else x for x in self.inputs])

    def take(self) -> Tensor:
        """The value for one of the graph's uses; it stays until the last of them."""
        value = self.make()
        self.left = (self.left or self.uses) - 1
        self.value = value if self.left else None
        return value


class _Saved:
    """What the graph holds in the place of a tensor: the tensor, or how it is made again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.recipe: _Recipe | None = None

    def forget(self, recipe: _Recipe) -> None:
        recipe.uses += 1
        self.tensor, self.recipe = None, recipe


def _unpack(saved: _Saved) -> Tensor:
    if saved.recipe is not None:
        return saved.recipe.take()
    assert saved.tensor is not None
    return saved.tensor


class _Notebook:
    """The recipes of one forward pass, found by the memory of the map they make."""

    def __init__(self) -> None:
        self.recipes: dict[int, tuple[weakref.ref[Tensor], _Recipe]] = {}
        self.fresh: list[_Saved] | None = None

    def pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        recipe = self.find(tensor)
        if recipe is not None:
            saved.forget(recipe)
        elif self.fresh is not None:
            self.fresh.append(saved)
        return saved

    def find(self, tensor: Tensor) -> _Recipe | None:
        made, recipe = self.recipes.get(_memory(tensor), (lambda: None, None))
        return recipe if recipe is not None and _same(made(), tensor) else None

    def record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        # detached: a recipe sits in the graph, and must not hold on to it
        recipe = _Recipe(function, [self.find(x) or x.detach() for x in inputs])
        outer, self.fresh = self.fresh, []
        result = function(*inputs)
        fresh, self.fresh = self.fresh, outer
        passed_on = any(_memory(result) == _memory(x) for x in inputs)
        if result.requires_grad and not passed_on and recipe.untouched():
            self.recipes[_memory(result)] = (weakref.ref(result), recipe)
            for saved in fresh:  # an activation saves its own result before it can be known here
                if saved.tensor is not None and _same(result, saved.tensor):
                    saved.forget(recipe)
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same(made: Tensor | None, tensor: Tensor) -> bool:
    return bool(
        made is not None
        and _memory(made) == _memory(tensor)
        and made.dtype == tensor.dtype
        and made.shape == tensor.shape
        and made.stride() == tensor.stride()
        and made.storage_offset() == tensor.storage_offset()
        and made._version == tensor._version
    )


def _autocast_state(inputs: list[Tensor | _Recipe]) -> list[tuple[str, torch.dtype, bool]]:
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    return [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in devices
    ] + [state for x in inputs if isinstance(x, _Recipe) for state in x.autocast][:1]
