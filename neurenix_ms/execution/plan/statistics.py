"""Moments of a normalization over any part of a feature map, and its result with given moments."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neurenix_ms.execution.plan.channels import (
    channel_moments,
    channel_sums,
    in_full_precision,
    spread,
)

Kind = Literal["batch", "instance", "group"]
# by function: what it normalizes over, and the names of its positional arguments
NORMS: dict[Callable[..., Tensor], tuple[Kind, str]] = {
    F.batch_norm: ("batch", "x running_mean running_var weight bias by_input momentum eps"),
    torch.batch_norm: ("batch", "x weight bias running_mean running_var by_input momentum eps _"),
    F.instance_norm: ("instance", "x running_mean running_var weight bias by_input momentum eps"),
    torch.instance_norm: (
        "instance",
        "x weight bias running_mean running_var by_input momentum eps _",
    ),
    F.group_norm: ("group", "x num_groups weight bias eps"),
    torch.group_norm: ("group", "x num_groups weight bias eps _"),
}
SPELLINGS = {"input": "x", "training": "by_input", "use_input_stats": "by_input"}
ALWAYS_FLOAT32 = {"cuda": ("group",)}  # what autocast does with them


@dataclass
class Moments:
    """Mean and variance of `count` values, `(B, C)`, `(1, C)` or `(B, groups)`, in float64."""

    count: int
    mean: Tensor
    var: Tensor

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets (Chan et al. 1979, "Updating formulae", equation 2.1)."""
        count = self.count + other.count
        share = other.count / count
        step = other.mean - self.mean
        var = self.var + share * (other.var - self.var) + share * (1 - share) * step.square()
        return Moments(count, self.mean + share * step, var)


@dataclass
class Normalization:
    """A call that normalizes by the statistics of its input."""

    kind: Kind
    plain: Callable[[], Tensor]
    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    by_input: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    num_groups: int = 1

    def moments(self, core: Tensor) -> Moments:
        """Compute the moments of `core`, a part of the feature map that is normalized."""
        mean, var = channel_moments(core)
        count = core.shape[2:].numel()
        if self.kind == "batch":
            return _of_equal_sets(count, mean[None], var[None], 1)
        if self.kind == "group":
            sizes = len(mean), self.num_groups, -1
            return _of_equal_sets(count, mean.reshape(sizes), var.reshape(sizes), 2)
        return Moments(count, mean, var)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Return mean 0 and variance 1 in the shape of the moments."""
        batch = 1 if self.kind == "batch" else self.x.shape[0]
        keys = self.num_groups if self.kind == "group" else self.x.shape[1]
        return self.x.new_zeros(batch, keys), self.x.new_ones(batch, keys)

    def no_moments(self) -> Moments:
        """Return the moments of no values, in the shape of others."""
        zeros = self.constants()[0].double()
        return Moments(0, zeros, zeros)

    def normalized(self, mean: Tensor, var: Tensor) -> Tensor:
        """Normalize the input with the given moments of the whole feature map."""
        tensors = self.x, mean, var, self.weight, self.bias
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            result: Tensor = _Normalized.apply(self.settings(), *tensors)
            return result
        return self.result(self.x, mean, var, self.weight, self.bias)

    def settings(self) -> "Normalization":
        """Return the call without its tensors."""
        nothing = self.x.new_empty(0, *self.x.shape[1:])
        return replace(self, x=nothing, weight=None, bias=None, plain=_not_again)

    def result(
        self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Compute the result for any input, without a graph."""
        mean, scale = self.per_channel(mean), self.per_channel((var + self.eps).rsqrt())
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        dtype = self._result_dtype(x)
        x = in_full_precision(x)
        return torch.addcmul(spread(shift, x), x, spread(scale, x)).to(dtype)

    def gradients(
        self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, d_y: Tensor
    ) -> "NormGradients":
        """Compute the gradients for that of the result, with mean and variance as given numbers.

        With `n = (x - mean) / sqrt(var + eps)`, the result is `n * weight + bias`, so all gradients but
        that of x follow from the sums of `d_y` and of `n * d_y` over the positions of a channel.
        """
        full, d_y = in_full_precision(x), in_full_precision(d_y)
        inverse = (var + self.eps).rsqrt()
        scale = self.per_channel(inverse)
        products, sums = channel_sums(full, d_y, self.per_channel(mean), scale)
        d_weight, d_bias = products.sum(0), sums.sum(0)
        if weight is not None:
            products, sums, scale = (t * weight for t in (products, sums, scale))
        d_mean = -inverse * self._summed(sums)
        d_var = -0.5 * inverse.square() * self._summed(products)
        return NormGradients(d_y * spread(scale, d_y), d_mean, d_var, d_weight, d_bias)

    def of_its_shape(self) -> Tensor:
        """Return an empty tensor like the result."""
        return torch.empty_like(self.x, dtype=self._result_dtype(self.x))

    def seed(self, core: Tensor, moments: Moments, d_mean: Tensor, d_var: Tensor) -> Tensor:
        """Compute the gradient of the loss with respect to `core` through the moments."""
        slope, offset = self.through_moments(moments, d_mean, d_var)
        full = in_full_precision(core)
        return torch.addcmul(spread(offset, full), full, spread(slope, full)).to(core.dtype)

    def through_moments(
        self, moments: Moments, d_mean: Tensor, d_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient through the moments, which is linear in x, as slope and offset.

        The variance is centered, so its derivative by the mean is zero and only local terms are left.
        """
        slope = self.per_channel(2 * d_var / moments.count)
        offset = self.per_channel(d_mean / moments.count) - slope * self.per_channel(moments.mean)
        return slope, offset

    def per_channel(self, t: Tensor) -> Tensor:
        """Expand `(B, groups)` to `(B, C)`; other kinds have an entry per channel already."""
        return t.repeat_interleave(self.x.shape[1] // t.shape[1], 1) if self.kind == "group" else t

    @torch.no_grad()
    def move_running(self, moments: Moments) -> None:
        """Update the running statistics once, as a forward on the whole input does."""
        unbiased = moments.var * (moments.count / max(1, moments.count - 1))
        for running, now in ((self.running_mean, moments.mean), (self.running_var, unbiased)):
            if running is not None:
                running.lerp_(now.mean(0).to(running.dtype), self.momentum)

    def _summed(self, t: Tensor) -> Tensor:
        """Sum numbers per channel over all that have one mean."""
        if self.kind == "batch":
            return t.sum(0, keepdim=True)
        return t.reshape(len(t), self.num_groups, -1).sum(2) if self.kind == "group" else t

    def _result_dtype(self, x: Tensor) -> torch.dtype:
        device = x.device.type
        if torch.is_autocast_enabled(device) and self.kind in ALWAYS_FLOAT32.get(device, ()):
            return torch.float32
        return x.dtype


@dataclass
class NormGradients:
    """Gradients of a normalization; that of x holds for fixed moments."""

    x: Tensor
    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor


class _Normalized(torch.autograd.Function):
    """Normalize with given moments; backward computes all gradients in two passes over memory."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: Normalization,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(x, mean, var, weight)
        return norm.result(x, mean, var, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight = ctx.saved_tensors
        found = ctx.norm.gradients(x, mean, var, weight, d_y)
        grads = found.x.to(x.dtype), found.mean, found.var, found.weight, found.bias
        wanted = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return None, *(grad if needed else None for grad, needed in wanted)


def _of_equal_sets(count: int, mean: Tensor, var: Tensor, dim: int) -> Moments:
    """Return the moments of sets of `count` values each, along one dimension, taken together."""
    middle = mean.mean(dim, keepdim=True)
    together = (var + (mean - middle).square()).mean(dim)
    return Moments(count * mean.shape[dim], middle.squeeze(dim), together)


def _not_again() -> Tensor:
    raise RuntimeError("the input of this call is not kept; only its settings are")


def normalization(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Normalization | None:
    """Return the call of `function` as a `Normalization`, or None if it needs no statistics."""
    if function not in NORMS:
        return None
    kind, names = NORMS[function]
    given = dict(zip(names.split(), args, strict=False))
    given |= {SPELLINGS.get(name, name): value for name, value in kwargs.items()}
    by_input = given.setdefault("by_input", kind != "batch")
    given = {name: value for name, value in given.items() if name in Normalization.__annotations__}
    return Normalization(kind, lambda: function(*args, **kwargs), **given) if by_input else None
