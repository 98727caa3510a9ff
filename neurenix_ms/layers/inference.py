"""Norm and activation of a convolution without autograd: called directly, and in place."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import BATCH_NORMS, INSTANCE_NORMS
from neurenix_ms._core.hooks import is_dense, is_observed, is_watched
from neurenix_ms._core.tracing import sizes_are_open
from neurenix_ms.layers.conditioning import FiLM

# by exact type: a subclass may do something else
FIXED_STATISTICS = frozenset(BATCH_NORMS.values())
# their result is a new tensor, or the new one of the convolution
NORMS = FIXED_STATISTICS | {*INSTANCE_NORMS.values(), nn.GroupNorm, nn.Identity}
IN_PLACE: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda act, y: torch.relu_(y),
    nn.LeakyReLU: lambda act, y: F.leaky_relu_(y, act.negative_slope),
    nn.SiLU: lambda act, y: F.silu(y, inplace=True),
    nn.ELU: lambda act, y: F.elu_(y, act.alpha),
    nn.CELU: lambda act, y: torch.celu_(y, act.alpha),
    nn.Tanh: lambda act, y: torch.tanh_(y),
    nn.Identity: lambda act, y: y,
}


def is_inference(x: Tensor) -> bool:
    """Return whether a forward pass builds no graph, and nothing watches or records its calls."""
    return is_dense(x) and not (torch.is_grad_enabled() or sizes_are_open() or is_watched())


def finished(
    norm: nn.Module,
    act: nn.Module,
    y: Tensor,
    film: FiLM | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Return the activation of the normalized result of a convolution, which it may overwrite.

    The values are those of `act(norm(y))`, or `act(film(norm(y), condition))`, to the last bit. For
    small feature maps, most of the time is that of Python calls, and here they are fewer; for large
    ones, an activation in place saves memory.
    """
    known = type(norm) in NORMS and type(act) in IN_PLACE
    if film is None or condition is None:
        if not known or is_observed(norm, act):
            return act(norm(y))
        return IN_PLACE[type(act)](act, _normalized(norm, y))
    if not known or is_observed(norm, act, film):
        return act(film(norm(y), condition))
    y = _normalized(norm, y)
    factor, beta = film.scale_and_shift(condition, y.ndim - 2)
    same = factor.dtype == y.dtype  # else, under autocast, the product has another one
    y = y.mul_(factor) if same else y * factor
    return IN_PLACE[type(act)](act, y.add_(beta))


class NormAndAct(nn.Sequential):
    """A module that returns a new feature map, a norm and an activation, in that order.

    Called with a `FiLM` and a condition too, they come between norm and activation.

    Shape:
        that of the first module
    """

    def forward(self, x: Any, film: FiLM | None = None, condition: Tensor | None = None) -> Tensor:
        first, norm, act = self
        y = first(x)
        if is_inference(y):
            return finished(norm, act, y, film, condition)
        y = norm(y)
        return act(y if film is None else film(y, condition))


def _normalized(norm: Any, y: Tensor) -> Tensor:
    statistics = norm._buffers
    if norm.training or type(norm) not in FIXED_STATISTICS or statistics["running_mean"] is None:
        return norm(y)
    weights = norm._parameters  # attributes of a module are slow to look up
    return torch.batch_norm(
        y, weights["weight"], weights["bias"],
        statistics["running_mean"], statistics["running_var"],
        False, 0.0, norm.eps, torch.backends.cudnn.enabled,
    )  # fmt: skip
