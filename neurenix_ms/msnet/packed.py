"""A faster form of a stage of convolutions with few channels, for inference on a CPU.

Convolution kernels of a CPU compute 16 channels at a time, and the finest stage of an MSNet has two.
Here neighboring voxels of a row are packed into channels: 8 voxels of 2 channels become one position of
16 channels, and the weight is 0 between voxels that are not within one kernel. The result is that of
the plain form, `tail(layers(x))`, except for the order of sums. It has no gradient.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, CONVOLVE, INSTANCE_NORMS
from neurenix_ms._core.hooks import is_dense, is_observed
from neurenix_ms._core.tracing import is_jit_tracing
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.naming import ACTIVATIONS

CHANNELS = 16  # float32 numbers in a register of 512 bits
# activations that act on every value separately, so the arrangement of the values does not matter;
# a PReLU does with one weight for all channels
ELEMENTWISE = tuple(kind for kind in ACTIVATIONS.values() if isinstance(kind, type))
PLAIN_NORMS = (*INSTANCE_NORMS.values(), nn.Identity)


def can_pack(layers: nn.Sequential, tail: nn.Module, x: Tensor) -> bool:
    """Return whether `packed` computes `tail(layers(x))`, and nothing observes the calls inside."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_jit_tracing():
        return False
    # tensor subclasses, fx proxies and vmap interpret the calls and need the plain ones
    if not is_dense(x) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if torch.overrides._get_current_function_mode() is not None:  # such as a run in tiles
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if type(tail) not in CONVOLUTIONS.values() or not all(map(_plain, layers)):
        return False
    return not is_observed(*layers.modules(), tail) and all(map(_dense, layers.parameters()))


def packed(layers: nn.Sequential, tail: nn.Module, x: Tensor) -> Tensor:
    """Compute `tail(layers(x))` for layers that `can_pack` accepts, sample by sample.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """
    stack = cast(list[ConvNormAct], list(layers))
    outputs = [_one(stack, tail, sample) for sample in x.split(1)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _dense(weight: Tensor) -> bool:
    return is_dense(weight) and weight.dtype == torch.float32


def _plain(layer: nn.Module) -> bool:
    if type(layer) is not ConvNormAct or type(layer.conv) not in CONVOLUTIONS.values():
        return False
    norm = layer.norm
    affine = getattr(norm, "affine", False) or getattr(norm, "track_running_stats", False)
    if type(layer.act) not in ELEMENTWISE or getattr(layer.act, "num_parameters", 1) > 1:
        return False
    return layer.conv.padding_mode == "zeros" and type(norm) in PLAIN_NORMS and not affine


def _one(layers: list[ConvNormAct], tail: Any, x: Tensor) -> Tensor:
    first, *others = layers
    size, channels, border = x.shape[2:], first.conv.out_channels, first.conv.kernel_size[-1] // 2
    length = math.gcd(size[-1], max(1, CHANNELS // channels))  # voxels of a segment of a row
    length = length if length >= border else 1  # else a window would exceed the next segment
    y = _convolved(first, _windows_of_input(x, border, length), length, of_input=True)
    y = _finished(first, y)
    # one buffer for all layers, because its allocation takes longer than filling it
    windows = y.new_empty(*y.shape[:-1], (length + 2 * border) * channels if length > 1 else 0)
    for layer in others:
        if length > 1:
            _fill(windows, y, border * channels)
            del y
            y = _convolved(layer, windows, length)
        else:
            y = _convolved(layer, y, length)
        y = _finished(layer, y)
    del windows
    y = F.linear(y.view(-1, channels), tail.weight.flatten(1), tail.bias)
    return y.view(1, *size, -1).movedim(-1, 1).contiguous()


def _windows_of_input(x: Tensor, border: int, length: int) -> Tensor:
    """Return the window of each segment: `(1, C, ..., W)` -> `(1, ..., W / length, C * window)`."""
    windows = F.pad(x, (border, border)).unfold(-1, length + 2 * border, length)
    return windows.movedim(1, -2).flatten(-2)


def _fill(windows: Tensor, y: Tensor, border: int) -> None:
    """Write the windows of a packed tensor `(1, ..., W / length, length * C)`, 0 outside of the row."""
    if border == 0:
        windows.copy_(y)
        return
    windows[..., 0, :border] = 0
    windows[..., -1, -border:] = 0
    windows[..., border:-border] = y
    windows[..., 1:, :border] = y[..., :-1, -border:]
    windows[..., :-1, -border:] = y[..., 1:, :border]


def _convolved(layer: ConvNormAct, x: Tensor, length: int, of_input: bool = False) -> Tensor:
    """Return the convolution of windows or voxels: `(1, ..., W / length, length * C_out)`."""
    weight, border = layer.conv.weight, layer.conv.kernel_size[-1] // 2
    padding = [border] * (x.ndim - 2)
    if of_input or length > 1:
        weight = _banded(weight, length, of_input)
        padding[-1] = 0
    # an instance norm removes the bias
    bias = layer.conv.bias.repeat(length) if isinstance(layer.norm, nn.Identity) else None
    y = CONVOLVE[x.ndim - 2](x.movedim(-1, 1), weight, bias, padding=padding)
    return y.movedim(1, -1).contiguous()


def _banded(weight: Tensor, length: int, of_input: bool) -> Tensor:
    """Return the weight from windows to packed voxels, a band matrix along the row.

    In windows of the input the voxels of one channel are contiguous, in windows of a packed tensor the
    channels of one voxel.
    """
    out_channels, in_channels, *kernel = weight.shape
    window = length + kernel[-1] - 1
    banded = weight.new_zeros(length, out_channels, window, in_channels, *kernel[:-1])
    for voxel in range(length):
        banded[voxel, :, voxel : voxel + kernel[-1]] = weight.movedim(-1, 1)
    banded = banded.transpose(2, 3) if of_input else banded
    return banded.flatten(2, 3).flatten(0, 1).unsqueeze(-1)


def _finished(layer: ConvNormAct, y: Tensor) -> Tensor:
    """Apply norm and activation in place."""
    norm: Any = layer.norm
    act = layer.act
    if not isinstance(norm, nn.Identity):
        channels = layer.conv.out_channels
        means, variances = torch.batch_norm_update_stats(y.movedim(-1, 1), None, None, 0.0)
        means, variances = means.view(-1, channels), variances.view(-1, channels)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        rows = y.view(-1, y.shape[-2] * y.shape[-1])  # long rows, because the loop over one is fast
        repeats = rows.shape[1] // channels
        rows.sub_(mean.repeat(repeats)).mul_((variance + norm.eps).rsqrt().repeat(repeats))
    return torch.celu_(y, act.alpha) if isinstance(act, nn.CELU) else act(y)
