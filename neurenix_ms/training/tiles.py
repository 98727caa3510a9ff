"""Loss over the whole input with a gradient that is accumulated tile by tile."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neurenix_ms.execution import accumulate_gradients


def loss_in_tiles(
    model: nn.Module,
    x: Tensor,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    tile_size: int | Sequence[int],
    whole: Literal["auto"] | Sequence[str],
    mesh: DeviceMesh | None = None,
    args: Sequence[Any] = (),
) -> Tensor:
    """Return `loss(model(x, *args), target)`, whose `backward()` adds the gradients found in tiles.

    So the usual operations of a Trainer work: scaling a loss, summing several, clipping gradients.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        value = accumulate_gradients(
            model, x, target, loss, tile_size, args=args, whole=whole, mesh=mesh
        )
        found = [p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
    result: Tensor = _WithGradients.apply(value, found, *parameters)
    return result


def domain_mesh(domain_size: int | None, device: torch.device) -> DeviceMesh | None:
    """Return the mesh of the ranks that share an input with this one; None in a single process.

    Consecutive ranks share an input; None makes all ranks share one.
    """
    if not dist.is_available() or not dist.is_initialized():
        if domain_size not in (None, 1):
            raise ValueError(
                f"domain_size must divide the number of processes, got {domain_size} and 1 process"
            )
        return None
    world = dist.get_world_size()
    size = world if domain_size is None else domain_size
    if world % size:
        raise ValueError(
            f"domain_size must divide the number of processes, got {size} and {world} processes"
        )
    names = ("data", "domain")
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=names)["domain"]


class _WithGradients(torch.autograd.Function):
    """Value with given gradients by the parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, found: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.found = found
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * scale for g in ctx.found)
