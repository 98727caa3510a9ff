"""Moments of a normalization over any part of a feature map, and its result with given moments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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
        x = core.float() if core.dtype in (torch.bfloat16, torch.float16) else core
        if self.kind == "group":
            x = x.reshape(len(x), self.num_groups, -1)
        dims = tuple(range(2, x.ndim))
        var, mean = torch.var_mean(x, (0, *dims) if self.kind == "batch" else dims, correction=0)
        var, mean = (t.double().reshape(-1, t.shape[-1]) for t in (var, mean))
        return Moments(x.numel() // mean.numel(), mean, var)

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
        scale = (var + self.eps).rsqrt()
        mean, scale = self.per_channel(mean), self.per_channel(scale)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        x = self.x.float() if self.x.dtype in (torch.bfloat16, torch.float16) else self.x
        ones = (1,) * (x.ndim - 2)
        scale, shift = (t.to(x.dtype).reshape(*t.shape, *ones) for t in (scale, shift))
        return torch.addcmul(shift, x, scale).to(self._result_dtype())

    def of_its_shape(self) -> Tensor:
        """Return an empty tensor like the result."""
        return torch.empty_like(self.x, dtype=self._result_dtype())

    def seed(self, core: Tensor, moments: Moments, d_mean: Tensor, d_var: Tensor) -> Tensor:
        """Compute the gradient of the loss with respect to `core` through the moments.

        The variance is centered, so its derivative by the mean is zero and only local terms are left.
        """
        ones = (1,) * (core.ndim - 2)

        def spread(t: Tensor) -> Tensor:
            t = self.per_channel(t)
            return t.reshape(*t.shape, *ones)

        seed = spread(d_mean) + 2 * spread(d_var) * (core - spread(moments.mean))
        return (seed / moments.count).to(core.dtype)

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

    def _result_dtype(self) -> torch.dtype:
        device = self.x.device.type
        if torch.is_autocast_enabled(device) and self.kind in ALWAYS_FLOAT32.get(device, ()):
            return torch.float32
        return self.x.dtype


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
