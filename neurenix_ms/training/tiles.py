"""Loss over the whole input with a gradient that is accumulated tile by tile."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurenix_ms.execution import accumulate_gradients


def loss_in_tiles(
    model: nn.Module,
    x: Tensor,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    tile_size: int | Sequence[int],
    whole: Literal["auto"] | Sequence[str],
) -> Tensor:
    """Return `loss(model(x), target)`, whose `backward()` adds the gradients found in tiles.

    So the usual operations of a Trainer work: scaling a loss, summing several, clipping gradients.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ValueError(
            "training in tiles needs a single process, got "
            f"{torch.distributed.get_world_size()} of torch.distributed"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        value = accumulate_gradients(model, x, target, loss, tile_size, whole=whole)
        found = [p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
    result: Tensor = _WithGradients.apply(value, found, *parameters)
    return result


class _WithGradients(torch.autograd.Function):
    """Value with given gradients by the parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, found: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.found = found
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * scale for g in ctx.found)
