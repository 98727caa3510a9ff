"""Prediction of peak memory from shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from neurenix_ms._core.arguments import UNCHECKED, checked
from neurenix_ms._core.checks import check_integers, check_sequence, shown
from neurenix_ms._core.hooks import estimating_memory
from neurenix_ms._core.probing import memoryless_copy
from neurenix_ms.bench.comparing import loss_of
from neurenix_ms.bench.forms import as_dtype, in_words
from neurenix_ms.bench.results import in_bytes
from neurenix_ms.bench.workspace import KernelWorkspace
from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.execution import TiledModel
from neurenix_ms.execution.compiled import plain_module, uncompiled
from neurenix_ms.execution.plan.arguments import check_args, passing
from neurenix_ms.execution.plan.footprint import like_parameters
from neurenix_ms.execution.run.ranks import OneProcess
from neurenix_ms.execution.run.setting import settle
from neurenix_ms.meter import peak_tensor_bytes

Shape = Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class MemoryPrediction:
    """Predicted bytes of a call of a network.

    Compare `total` with the free memory of the device. It does not include workspace inside kernels,
    cached memory of the allocator, and the state of an optimizer (for Adam, twice the parameters).
    The workspace that `nn.LSTM` keeps from forward to backward on a CPU is part of `peak`.

    Args:
        parameters: Bytes of parameters and buffers.
        inputs: Bytes of the input.
        peak: Peak bytes of the tensors that the call allocates: results, intermediate feature maps
            and, in training, gradients. `peak_tensor_bytes` measures the same.

    Examples:
        >>> print(MemoryPrediction(parameters=2**20, inputs=2**18, peak=3 * 2**20))
        4.25 MiB: 3 MiB at the peak, parameters 1 MiB, inputs 256 KiB
    """

    parameters: int
    inputs: int
    peak: int

    @property
    def total(self) -> int:
        """Sum of parameters, inputs and peak."""
        return self.parameters + self.inputs + self.peak

    def __str__(self) -> str:
        return (
            f"{in_bytes(self.total)}: {in_bytes(self.peak)} at the peak, "
            f"parameters {in_bytes(self.parameters)}, inputs {in_bytes(self.inputs)}"
        )


@checked
def predict_memory(
    model: nn.Module,
    shape: Annotated[Shape, UNCHECKED],
    *,
    args: Annotated[Sequence[Sequence[int]], UNCHECKED] = (),
    kwargs: Annotated[Mapping[str, Any] | None, UNCHECKED] = None,
    train: bool = False,
    checkpointing: bool = False,
    tile_size: int | None = None,
    dtype: str | torch.dtype | None = None,
) -> MemoryPrediction:
    """Predict the peak memory of a network for an input shape, without running it.

    Use it to choose a batch size, a crop size or a GPU. A copy of the network runs on tensors without
    values, so even a volume of many gigabytes needs no memory. It works for any network whose Python
    code does not depend on values of tensors, so not for an `AdaptiveTimeStepper`.

    Args:
        model: Any module; it is not changed. The kernels are those of its device.
        shape: Shape of the input, `(B, C, *S)`, or a list of shapes for a list of feature maps.
        args: Shapes of further tensors that the network is called with, such as a condition `(B, K)`, or
            velocities beside a density.
        kwargs: Keyword arguments that are not tensors, such as the `num_steps` of a forecast.
        train: Predict a training step (forward and backward of a mean square) instead of a forward
            pass without gradients.
        checkpointing: Train inside `enable_gradient_checkpointing`.
        tile_size: Tile size of a `TiledModel` in which the network runs. The tiles are planned on
            small inputs first. `model` may also be a `TiledModel` itself.
        dtype: Dtype of the input; that of the parameters if None.

    Returns:
        Bytes of parameters, inputs, and the peak.

    Raises:
        ValueError: If the network cannot run on tensors without values or does not support the shape,
            or if arguments contradict each other.

    Examples:
        >>> from neurenix_ms import UNet
        >>> model = UNet(1, 2, spatial_dims=3)
        >>> print(predict_memory(model, (1, 1, 256, 256, 256), train=True))
        62.1 GiB: 61.8 GiB at the peak, parameters 198 MiB, inputs 64 MiB
    """
    sizes = check_sequence("shape", shape, "sizes")
    several = len(sizes) > 0 and isinstance(sizes[0], Sequence)
    shapes = [_as_shape(one) for one in (sizes if several else [sizes])]
    others = [
        _as_shape(one, f"args[{i}]") for i, one in enumerate(check_sequence("args", args, "shapes"))
    ]
    named = _as_named(kwargs)
    if checkpointing and not train:
        raise ValueError("checkpointing must come with train=True, got train=False")
    tiled = model if isinstance(model, TiledModel) else None
    network = plain_module(tiled.model if tiled is not None else model)
    given = None if dtype is None else as_dtype(dtype)
    like = like_parameters(network, given)
    kind = given or like.dtype
    if tile_size is not None:
        tiled = TiledModel(network, tile_size, spatial_dims=len(shapes[0]) - 2)  # type: ignore[arg-type]
    if tiled is not None and (train or several or named):
        raise ValueError(
            "tiles must be of one input, without gradients and without kwargs, got "
            f"shape {shown(shape)}, train={train} and kwargs={shown(named)}"
        )

    def call(copied: nn.Module) -> Callable[[], object]:
        xs, more = (
            [torch.empty(s, dtype=kind, device=like.device) for s in given]
            for given in (shapes, others)
        )
        if tiled is not None:
            return _in_tiles(tiled, network, copied, xs[0], like, more)
        values = (xs if several else xs[0], *more)
        bound = partial(copied, *values, **named)
        return _step(copied, bound, checkpointing) if train else partial(_forward, bound)

    weights = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
    inputs = sum(math.prod(s) for s in [*shapes, *others]) * kind.itemsize
    return MemoryPrediction(weights, inputs, _peak(network, call, train))


def _peak(
    network: nn.Module, call: Callable[[nn.Module], Callable[[], object]], train: bool
) -> int:
    """Return most bytes of a call of a copy without memory."""
    try:
        with estimating_memory(), memoryless_copy(network) as copied, KernelWorkspace():
            copied.train(train)
            with torch.set_grad_enabled(train):
                return peak_tensor_bytes(call(copied), of_shapes=True)
    except Exception as error:  # a user's network may raise any exception
        raise ValueError(
            f"model must run on tensors of this shape without their values, got {in_words(error)}"
        ) from error


def _forward(call: Callable[[], object]) -> None:
    with torch.no_grad():
        call()


def _step(
    network: nn.Module, call: Callable[[], object], checkpointing: bool
) -> Callable[[], object]:
    def step() -> None:
        with enable_gradient_checkpointing(checkpointing):
            loss = loss_of(call())
        loss.backward()
        network.zero_grad()

    return step


def _in_tiles(
    tiled: TiledModel,
    network: nn.Module,
    copied: nn.Module,
    x: Tensor,
    like: Tensor,
    args: Sequence[Tensor],
) -> Callable[[], object]:
    """Return the tiles of the network, planned on itself and run on its copy in the same mode."""
    for module, original in zip(copied.modules(), network.modules(), strict=True):
        module.training = original.training
    with unset_fake_temporarily(), uncompiled():
        how = (tiled.tile_size, tiled.whole, tiled.memory_limit)
        values = [like.new_zeros(a.shape) for a in args]
        with passing(check_args(values, x.shape)):
            setting = settle(network, tuple(x.shape), like, *how, schedule=tiled.schedule)
    empty = torch.empty(0, dtype=like.dtype, device=like.device)

    def run() -> None:
        with torch.no_grad(), uncompiled(), passing(args):
            if setting is None:
                tiled._in_one(copied, x, empty, None, OneProcess())
            else:
                tiled._in_tiles(copied, x, empty, None, setting, OneProcess())

    return run


def _as_named(kwargs: Any) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs must be arguments by name, got {shown(kwargs)}")
    for name, value in (kwargs or {}).items():
        if isinstance(value, Tensor):
            raise ValueError(f"kwargs[{name!r}] must not be a tensor, got {shown(value)}; use args")
    return dict(kwargs or {})


def _as_shape(shape: Any, name: str = "shape") -> tuple[int, ...]:
    return tuple(check_integers(name, shape, 1, min_length=1))
