"""Sums over the positions of every channel of a feature map, which normalizations need.

On a CPU they are parts of PyTorch's batch normalization, which take a third of the time of `var_mean`
and of products that are summed, and no memory.
"""

import torch
from torch import Tensor

LOW = (torch.bfloat16, torch.float16)


def in_full_precision(x: Tensor) -> Tensor:
    """Return `x`, in float32 if it has half precision."""
    return x.float() if x.dtype in LOW else x


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel, `(B, C)` in float64."""
    x = in_full_precision(x)
    if x.device.type == "cpu":
        mean, var = torch.batch_norm_update_stats(_one_image(x), None, None, 0.0)
    else:
        var, mean = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0)
    return mean.double().reshape(x.shape[:2]), var.double().reshape(x.shape[:2])


def channel_sums(x: Tensor, d_y: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of `(x - mean) * scale * d_y` and of `d_y`, `(B, C)` in float64.

    Args:
        x: A feature map in full precision.
        d_y: Another of the same shape and dtype.
        mean: `(B, C)` or `(1, C)`.
        scale: As `mean`.
    """
    mean, scale = (t.to(x.dtype).expand(x.shape[:2]) for t in (mean, scale))
    if x.device.type == "cpu":
        # the kernel ignores strides, and reshape keeps those of an expanded axis
        given = mean.reshape(-1).contiguous(), scale.reshape(-1).contiguous(), True, 0.0
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            _one_image(d_y), _one_image(x), None, None, None, *given, [False, True, True]
        )
    else:
        dims = tuple(range(2, x.ndim))
        products = (spread(-mean * scale, x).addcmul(x, spread(scale, x)) * d_y).sum(dims)
        sums = d_y.sum(dims)
    return products.double().reshape(x.shape[:2]), sums.double().reshape(x.shape[:2])


def spread(t: Tensor, x: Tensor) -> Tensor:
    """Return numbers per channel in the dtype of `x`, with an axis for each of its spatial axes."""
    return t.to(x.dtype).reshape(*t.shape, *(1,) * (x.ndim - 2))


def _one_image(x: Tensor) -> Tensor:
    """Return the channels of all images as those of one."""
    return x.reshape(1, -1, *x.shape[2:])
