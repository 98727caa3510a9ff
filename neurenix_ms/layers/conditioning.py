"""Conditioning of blocks on a vector, and the embedding of a number as a vector."""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_tensor, shown
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive
from neurenix_ms._core.tracing import is_jit_tracing, one_call, one_module, sizes_are_open

NAME = "condition"  # of the argument of `forward`


class FiLM(Configured, nn.Module):
    """Scale and shift every channel of a feature map by linear functions of a vector.

    Use it in a block of your own, after the normalization, so that the block depends on a time, a
    diffusion step or a physical parameter. Both layers start at zero, so a new layer returns its input.

    Args:
        condition_channels: Length of the vectors.
        channels: Channels of the feature map.

    Shape:
        feature map `(B, channels, *S)` and vector `(B, condition_channels)` -> `(B, channels, *S)`

    Raises:
        ValueError: If a number of channels is below 1, or the vectors have another shape or dtype.

    Source: Perez et al. 2018, "FiLM: Visual reasoning with a general conditioning layer", equation 2,
    with 1 + gamma as the factor (section 7.2 there).

    Examples:
        >>> import torch
        >>> from neurenix_ms import FiLM
        >>> film = FiLM(4, 8)
        >>> x = torch.randn(2, 8, 13, 9)
        >>> torch.equal(film(x, torch.randn(2, 4)), x)
        True
    """

    @checked
    def __init__(self, condition_channels: int, channels: int) -> None:
        super().__init__()
        check_positive(condition_channels=condition_channels, channels=channels)
        # no random numbers are drawn: a seed gives the weights that it gives without conditions
        self.weight = nn.Parameter(torch.zeros(2 * channels, condition_channels))
        self.bias = nn.Parameter(torch.zeros(2 * channels))

    @one_module
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        check_condition(x, condition, self.condition_channels)
        factor, beta = self.scale_and_shift(condition, x.ndim - 2)
        return torch.mul(x, factor).add_(beta)  # faster than addcmul where beta is broadcast

    def scale_and_shift(self, condition: Tensor, spatial_dims: int) -> tuple[Tensor, Tensor]:
        """Return factor and summand of every channel of every sample, `(B, channels, 1, ...)`."""
        both = F.linear(condition, self.weight, self.bias)
        gamma, beta = both.unflatten(-1, (2, -1, *(1,) * spatial_dims)).unbind(1)
        return 1 + gamma, beta


class SinusoidalEmbedding(Configured, nn.Module):
    """Embed a number, such as a time or a diffusion step, as sines and cosines of many periods.

    Use it, followed by an `MLP`, to make the condition of a network from a number: a network
    distinguishes small and large differences more easily in the embedding than in the number itself. The
    periods grow geometrically from `2 * pi` to nearly `2 * pi * max_period`, in units of the number;
    multiply a number between 0 and 1 by the number of values that must be distinguished.

    Args:
        channels: Length of the embedding, even: the sines first, then the cosines.
        max_period: Ratio of the longest period to the shortest one; numbers far beyond it are not
            distinguished.

    Shape:
        `(B,)` or `(B, 1)` -> `(B, channels)`; floating point numbers keep their dtype, integers get the
        default dtype

    Raises:
        ValueError: If `channels` is not even, `max_period` is not above 0, or the input has another
            shape.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5, as used for diffusion steps by
    Ho et al. 2020, appendix B. Deviation: sines and cosines are not interleaved, as in the code of Ho et
    al.

    Examples:
        >>> import torch
        >>> from neurenix_ms import SinusoidalEmbedding
        >>> embed = SinusoidalEmbedding(4, max_period=100)
        >>> embed(torch.tensor([0, 10]))
        tensor([[ 0.0000,  0.0000,  1.0000,  1.0000],
                [-0.5440,  0.8415, -0.8391,  0.5403]])
    """

    @checked
    def __init__(self, channels: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        check_integer("channels", channels, 2)
        if channels % 2:
            raise ValueError(f"channels must be even, a sine and a cosine each, got {channels}")
        if not 0 < max_period < math.inf:
            raise ValueError(f"max_period must be above 0 and finite, got {max_period}")

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        check_tensor("the input", x)
        if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[1] != 1) or x.is_complex():
            raise ValueError(
                f"the input must be real numbers of shape (B,) or (B, 1), got shape {tuple(x.shape)} "
                f"and dtype {x.dtype}"
            )
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        # angles of large numbers need many digits
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        half = self.channels // 2
        steps = torch.arange(half, device=x.device, dtype=wide)
        frequencies = torch.exp(steps * (-math.log(self.max_period) / half))
        angles = x.to(wide).reshape(-1, 1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)


@one_call
def check_condition(x: Tensor, condition: Tensor | None, channels: int | None) -> None:
    """Raise unless the condition of the batch `x` is as a network with these channels needs it."""
    if channels is None:
        if condition is not None:
            raise ValueError(
                "condition must be left out, because the network has condition_channels=None, got "
                f"{_described(condition)}"
            )
        return
    wanted = f"condition must be a tensor of shape (B, {channels}), one vector per sample"
    if not isinstance(condition, Tensor):
        raise ValueError(f"{wanted}, got {shown(condition)}")
    if is_jit_tracing():
        return
    fits = condition.ndim == 2 and condition.shape[1] == channels
    if not fits or (not sizes_are_open() and condition.shape[0] != x.shape[0]):
        raise ValueError(
            f"{wanted} of the batch of {x.shape[0]}, got shape {tuple(condition.shape)}"
        )
    mixed = torch.is_autocast_enabled(x.device.type) and condition.is_floating_point()
    if condition.dtype != x.dtype and not mixed:
        raise ValueError(
            f"condition must have the dtype of the input, {x.dtype}, got {condition.dtype}"
        )


def given_condition(x: Tensor, condition: Tensor | None, channels: int | None) -> Tensor | None:
    """Return the condition that blocks are called with, checked; None for a network without one."""
    check_condition(x, condition, channels)
    return None if channels is None else condition


def film_of(condition_channels: int | None, channels: int) -> FiLM | None:
    """Return the layer that conditions a feature map, None for one without a condition."""
    return None if condition_channels is None else FiLM(condition_channels, channels)


def condition_name(module: nn.Module, num_inputs: int = 1) -> str | None:
    """Return the name of the argument of `forward` that takes the condition, None if it has none.

    It is the one called `condition`, or else the one after the feature maps, if that has no default.
    """
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # of a compiled or scripted module
        return None
    if NAME in parameters:
        return NAME
    second = list(parameters.values())[num_inputs : num_inputs + 1]
    named = [p.name for p in second if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    return named[0] if named else None


def keyword(name: str | None, condition: Tensor | None) -> dict[str, Any]:
    """Return the keyword argument for a module whose `condition_name` this is."""
    return {} if name is None or condition is None else {name: condition}


def _described(condition: object) -> str:
    if isinstance(condition, Tensor):
        return f"a tensor of shape {tuple(condition.shape)}"
    return shown(condition)
