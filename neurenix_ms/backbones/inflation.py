"""Copies of a network for other input channels, or with one more spatial axis."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.convolution import Conv3d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def first_convolution(network: nn.Module) -> tuple[str, Any] | None:
    """Return path and module of the first convolution, or None if there is none."""
    found = ((path, m) for path, m in network.named_modules() if isinstance(m, CONVOLUTIONS))
    return next(found, None)


def with_channels(network: nn.Module, channels: int, own_channels: int) -> nn.Module:
    """Return a copy of the network for images of `channels` channels in place of `own_channels`.

    The kernels of its first convolution are repeated over the channels, scaled and shifted, so that an
    image with equal channels gives the same output as before.
    """
    network = copy.deepcopy(network)
    found = first_convolution(network)
    if found is None or found[1].groups != 1 or found[1].in_channels != own_channels:
        raise ValueError(
            f"in_channels {channels} needs a network that begins with a convolution without groups, "
            f"got {type(network).__name__}; build it for {channels} channels, as timm does with "
            f"in_chans={channels}"
        )
    _, conv = found
    weight = conv.weight.detach()
    old = weight.shape[1]
    new = weight[:, torch.arange(channels, device=weight.device) % old] * (old / channels)
    lacking = weight.sum(1, keepdim=True) - new.sum(1, keepdim=True)
    conv.weight = nn.Parameter(new + lacking / channels, conv.weight.requires_grad)
    conv.in_channels = channels
    return network


@checked
def inflate(module: nn.Module) -> nn.Module:
    """Convert a 2-D network into a 3-D network with inflated weights.

    Every kernel is repeated along a new first spatial axis and divided by its length. A volume of equal
    slices therefore gives the feature maps of one slice, except at the borders, where zeros are padded
    along the new axis too. Use it to initialize the training on volumes from a 2-D network.

    Only modules are converted. A network whose `forward` itself calls functions for two axes (Swin
    transformers, the permutations of ConvNeXt) cannot be converted, and fails when it is run.

    Args:
        module: A network of `Conv2d`, `ConvTranspose2d`, `BatchNorm2d`, `InstanceNorm2d`,
            `Dropout2d`, `Upsample`, poolings, and modules without axes. It is not changed.

    Returns:
        A copy, with (B, C, D, H, W) for (B, C, H, W).

    Raises:
        ValueError: If a transposed kernel is not a multiple of its stride, or a 2-D module has no 3-D
            counterpart.

    Source: Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?", section 2.4.

    Examples:
        >>> import torch
        >>> flat = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2))
        >>> inflate(flat)(torch.zeros(2, 1, 6, 8, 10)).shape
        torch.Size([2, 4, 3, 4, 5])
    """
    module = copy.deepcopy(module)
    if type(module) in TURNED:
        return _turned(module)
    for path, child in list(module.named_modules()):
        if type(child) in TURNED:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, _turned(child))
        elif type(child).__name__.endswith("2d") and not any(child.children()):
            raise ValueError(
                f"inflate needs modules that have a 3-D counterpart, got {path} {child}"
            )
    return module


def _turned(flat: nn.Module) -> nn.Module:
    return TURNED[type(flat)](flat).train(flat.training)


def _three(value: Any) -> Any:
    """Return a size with its first entry repeated, if it is given per axis."""
    return (value[0], *value) if isinstance(value, tuple) else value


def _repeated(weight: Tensor, length: int, share: float) -> nn.Parameter:
    inflated = weight.detach().unsqueeze(2).repeat(1, 1, length, 1, 1) / share
    return nn.Parameter(inflated, weight.requires_grad)


def _convolution(flat: Any) -> nn.Module:
    transposed = isinstance(flat, nn.ConvTranspose2d)
    length, stride = flat.kernel_size[0], flat.stride[0]
    if transposed and length % stride:
        raise ValueError(
            f"inflate needs transposed kernels that are a multiple of their stride, got {flat}"
        )
    options: dict[str, Any] = {
        name: _three(getattr(flat, name)) for name in ("kernel_size", "stride", "dilation")
    }
    options["padding"] = _three(flat.padding)
    if transposed:
        options["output_padding"] = _three(flat.output_padding)
    make: Callable[..., Any] = nn.ConvTranspose3d if transposed else Conv3d
    full = make(
        flat.in_channels,
        flat.out_channels,
        groups=flat.groups,
        bias=flat.bias is not None,
        padding_mode=flat.padding_mode,
        **options,
    )
    full.weight = _repeated(flat.weight, length, length // stride if transposed else length)
    full.bias = flat.bias
    return full


def _norm(make: Callable[..., nn.Module]) -> Callable[[Any], nn.Module]:
    def turn(flat: Any) -> nn.Module:
        full = make(
            flat.num_features,
            flat.eps,
            flat.momentum,
            flat.affine,
            flat.track_running_stats,
        )
        full.to(next(iter(flat.state_dict().values()), torch.empty(0)))
        full.load_state_dict(flat.state_dict())
        return full

    return turn


def _pool(make: Callable[..., nn.Module], *names: str) -> Callable[[Any], nn.Module]:
    return lambda flat: make(**{name: _three(getattr(flat, name)) for name in names})


def _upsample(flat: nn.Upsample) -> nn.Module:
    if flat.mode == "bicubic":
        raise ValueError(f"inflate needs modules that have a 3-D counterpart, got {flat}")
    mode = "trilinear" if flat.mode == "bilinear" else flat.mode
    return nn.Upsample(_three(flat.size), _three(flat.scale_factor), mode, flat.align_corners)


_WINDOW = ("kernel_size", "stride", "padding", "ceil_mode")
TURNED: dict[type, Callable[[Any], nn.Module]] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.BatchNorm2d: _norm(nn.BatchNorm3d),
    nn.InstanceNorm2d: _norm(nn.InstanceNorm3d),
    nn.MaxPool2d: _pool(nn.MaxPool3d, *_WINDOW, "dilation"),
    nn.AvgPool2d: _pool(nn.AvgPool3d, *_WINDOW, "count_include_pad"),
    nn.AdaptiveAvgPool2d: _pool(nn.AdaptiveAvgPool3d, "output_size"),
    nn.AdaptiveMaxPool2d: _pool(nn.AdaptiveMaxPool3d, "output_size"),
    nn.Dropout2d: _pool(nn.Dropout3d, "p", "inplace"),
    nn.Upsample: _upsample,
}
