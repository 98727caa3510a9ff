"""A faster form of a stage of narrow convolutions, for inference on a CPU.

The kernels of a CPU work on 16 channels at a time, and the finest stage of an MSNet has two. Here
the cells of a short piece of a row are taken for channels: 8 cells of 2 channels become one cell of
16, with a weight that is 0 where a cell does not see another. The result is that of the plain form,
`tail(layers(x))`, but for the order of sums. It has no gradient.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, CONVOLVE, INSTANCE_NORMS
from neurenix_ms._core.hooks import is_dense, is_observed
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.naming import ACTIVATIONS

CHANNELS = 16  # float32 numbers in a register of 512 bits
# what each does to a cell depends on that cell only, so the cells may lie anywhere
CELLWISE = tuple(kind for kind in ACTIVATIONS.values() if isinstance(kind, type))
PLAIN_NORMS = (*INSTANCE_NORMS.values(), nn.Identity)


def can_pack(layers: nn.Sequential, tail: nn.Module, x: Tensor) -> bool:
    """Return whether `packed` computes `tail(layers(x))`, and nothing observes the calls inside."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    # subclasses, fx proxies, vmap: what interprets the calls gets the plain ones
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
    """`tail(layers(x))` for layers that `can_pack` accepts, one sample after the other.

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
    cellwise = type(layer.act) in CELLWISE and layer.conv.padding_mode == "zeros"
    return cellwise and type(norm) in PLAIN_NORMS and not affine


def _one(layers: list[ConvNormAct], tail: Any, x: Tensor) -> Tensor:
    first, *others = layers
    size, channels, border = x.shape[2:], first.conv.out_channels, first.conv.kernel_size[-1] // 2
    cells = math.gcd(size[-1], max(1, CHANNELS // channels))
    cells = cells if cells >= border else 1  # else a window would reach past the next piece
    y = _convolved(first, _windows_of_map(x, border, cells), cells, of_map=True)
    y = _finished(first, y)
    # one for all layers: new memory takes longer than what is done in it
    windows = y.new_empty(*y.shape[:-1], (cells + 2 * border) * channels if cells > 1 else 0)
    for layer in others:
        if cells > 1:
            _fill(windows, y, border * channels)
            del y
            y = _convolved(layer, windows, cells)
        else:
            y = _convolved(layer, y, cells)
        y = _finished(layer, y)
    del windows
    y = F.linear(y.view(-1, channels), tail.weight.flatten(1), tail.bias)
    return y.view(1, *size, -1).movedim(-1, 1).contiguous()


def _windows_of_map(x: Tensor, border: int, cells: int) -> Tensor:
    """What each piece of a row sees: `(1, C, ..., W)` -> `(1, ..., W / cells, C * window)`."""
    windows = F.pad(x, (border, border)).unfold(-1, cells + 2 * border, cells)
    return windows.movedim(1, -2).flatten(-2)


def _fill(windows: Tensor, y: Tensor, border: int) -> None:
    """The same of a packed map `(1, ..., W / cells, cells * C)`; 0 beyond both ends of a row."""
    if border == 0:
        windows.copy_(y)
        return
    windows[..., 0, :border] = 0
    windows[..., -1, -border:] = 0
    windows[..., border:-border] = y
    windows[..., 1:, :border] = y[..., :-1, -border:]
    windows[..., :-1, -border:] = y[..., 1:, :border]


def _convolved(layer: ConvNormAct, x: Tensor, cells: int, of_map: bool = False) -> Tensor:
    """The convolution of windows, or of single cells: `(1, ..., W / cells, cells * C_out)`."""
    weight, border = layer.conv.weight, layer.conv.kernel_size[-1] // 2
    padding = [border] * (x.ndim - 2)
    if of_map or cells > 1:
        weight = _banded(weight, cells, of_map)
        padding[-1] = 0
    # an instance norm takes away any bias
    bias = layer.conv.bias.repeat(cells) if isinstance(layer.norm, nn.Identity) else None
    y = CONVOLVE[x.ndim - 2](x.movedim(-1, 1), weight, bias, padding=padding)
    return y.movedim(1, -1).contiguous()


def _banded(weight: Tensor, cells: int, of_map: bool) -> Tensor:
    """The weight from windows to packed cells; each cell sees its own part of the window.

    Windows of a map have the cells of a channel side by side, those of a packed map the channels
    of a cell.
    """
    out_channels, in_channels, *kernel = weight.shape
    window = cells + kernel[-1] - 1
    banded = weight.new_zeros(cells, out_channels, window, in_channels, *kernel[:-1])
    for cell in range(cells):
        banded[cell, :, cell : cell + kernel[-1]] = weight.movedim(-1, 1)
    banded = banded.transpose(2, 3) if of_map else banded
    return banded.flatten(2, 3).flatten(0, 1).unsqueeze(-1)


def _finished(layer: ConvNormAct, y: Tensor) -> Tensor:
    """Norm and activation, written into the map itself."""
    norm: Any = layer.norm
    act = layer.act
    if not isinstance(norm, nn.Identity):
        channels = layer.conv.out_channels
        means, variances = torch.batch_norm_update_stats(y.movedim(-1, 1), None, None, 0.0)
        means, variances = means.view(-1, channels), variances.view(-1, channels)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        rows = y.view(-1, y.shape[-2] * y.shape[-1])  # long ones, as the loop over one is fast
        repeats = rows.shape[1] // channels
        rows.sub_(mean.repeat(repeats)).mul_((variance + norm.eps).rsqrt().repeat(repeats))
    return torch.celu_(y, act.alpha) if isinstance(act, nn.CELU) else act(y)
