"""Normalizations and activations by a short name, or by any callable that makes a module."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from neurenix_ms._core.checks import check_made
from neurenix_ms._core.dims import BATCH_NORMS, INSTANCE_NORMS, SpatialDims, choose
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_call, sizes_are_open

Norm = Literal["batch", "instance", "group"] | Callable[[int], nn.Module] | None
Act = (
    Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh"]
    | Callable[[], nn.Module]
    | None
)

ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "tanh": nn.Tanh,
    None: nn.Identity,
}


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with the largest number of groups up to `min(32, channels // 4)`."""
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(max(n for n in range(1, most + 1) if channels % n == 0), channels)


def make_norm(norm: Norm, channels: int, spatial_dims: SpatialDims) -> nn.Module:
    """Return the normalization `norm` for `channels` channels."""
    if callable(norm):
        return check_made("norm", norm, channels)
    table: dict[str | None, Callable[[int], nn.Module]] = {
        "batch": choose(BATCH_NORMS, spatial_dims, "spatial_dims"),
        "instance": partial(INSTANCE_NORMS[spatial_dims], affine=True),
        "group": group_norm,
        None: lambda _: nn.Identity(),
    }
    return choose(table, norm, "norm")(channels)


def make_act(act: Act) -> nn.Module:
    """Return the activation `act`."""
    return check_made("act", act) if callable(act) else choose(ACTIVATIONS, act, "act")()


def check_normalizable(
    norm: Norm, training: bool, x: Tensor, num_halvings: int = 0, rounds_up: bool = False
) -> None:
    """Raise if `x` has one pixel after `num_halvings` halvings, so that the norm has no variance."""
    if norm == "instance" or (norm == "batch" and training):
        _check_several_pixels(norm, x, num_halvings, rounds_up)


@one_call
def _check_several_pixels(norm: str, x: Tensor, num_halvings: int, rounds_up: bool) -> None:
    if sizes_are_open():
        return
    sign = -1 if rounds_up else 1
    batch, size = x.shape[0], tuple(sign * (sign * n >> num_halvings) for n in spatial(x))
    if math.prod(size) == 1 and (norm == "instance" or batch < 2):
        raise ValueError(
            "instance norm, and batch norm in training on a batch of one, need more than one pixel "
            f"in the smallest feature map, got batch size {batch} and size {size} there with norm "
            f"{norm!r}; use a larger input or norm='group'"
        )
