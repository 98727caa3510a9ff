"""A network and a map in, the loss of the whole map out, its gradient found tile by tile."""

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
    """`loss(model(x), target)`, of which `backward()` gives the parameters what the tiles have found.

    So whatever a Trainer does with a loss (scaling it, adding up several, clipping) goes on to work.
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
    known: Tensor = _Known.apply(value, found, *parameters)
    return known


class _Known(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, found: list[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        ctx.found = found
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if g is None else g * scale for g in ctx.found)
