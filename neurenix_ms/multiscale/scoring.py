"""The head that computes the attention scores of a MultiScaleModel."""

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims, choose
from neurenix_ms._core.probing import memoryless_copy
from neurenix_ms.multiscale.attention import start_at_zero

SIZES = (64, 224, 256)  # of the images to try; networks with a fixed size take one of the last two
WIDTHS = ("in_channels", "input_channels", "in_features", "num_features", "num_channels")
MANY = 16  # largest number of widths to try
MIN_HIDDEN = 8


def score_head(
    channels: int | None, network: nn.Module, spatial_dims: SpatialDims
) -> tuple[int, nn.Sequential]:
    """Return the channels of the outputs of a network and the score head for them.

    The head has the dtype and the device of the network. Where the channels are measured, the state of
    the global random generator does not change, so models built afterwards get the same parameters.
    """
    if channels is not None:
        return channels, _head(channels, network, spatial_dims)
    channels = output_channels(network, spatial_dims)
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, (), device="cpu"))
        torch.default_generator.manual_seed(seed)  # other numbers than the next layer will draw
        return channels, _head(channels, network, spatial_dims)


def _head(channels: int, network: nn.Module, spatial_dims: SpatialDims) -> nn.Sequential:
    conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
    hidden = max(channels // 4, MIN_HIDDEN)
    head = nn.Sequential(conv(channels, hidden, 3, padding=1), nn.ReLU(), conv(hidden, 1, 1))
    start_at_zero(head)
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    return head if like is None else head.to(like.device, like.dtype)


def output_channels(network: nn.Module, spatial_dims: SpatialDims) -> int:
    """Measure the output channels of a network, on a copy that runs on fake tensors.

    The input channels are the first number with which the network runs, from those in its layers. The
    output channels of a network that takes any number and returns as many cannot be measured.

    Raises:
        ValueError: If the channels cannot be measured; the message asks for `channels=`.
    """
    try:
        with memoryless_copy(network) as ran:
            found, reason = _measured(ran, spatial_dims)
    except Exception as error:  # a module may hold anything, so copying can raise any exception
        found, reason = None, f"{type(error).__name__}: {error}"
    if found is None:
        raise ValueError(
            "channels must be given with fusion_method 'attention' where those of the base model "
            f"cannot be measured, got None and {type(network).__name__}, which {reason}"
        )
    return found


def _measured(network: nn.Module, spatial_dims: SpatialDims) -> tuple[int | None, str]:
    reason = "takes no image"
    for size in SIZES:
        for width in _widths(network, spatial_dims):
            found, error = _returned(network, width, size, spatial_dims)
            if found is None:
                reason = f"takes no image that was tried: {error}"
                continue
            other, _ = _returned(network, width + 1, size, spatial_dims)
            if other is None or other == found:
                return found, ""
            return None, "takes any number of channels"
    return None, reason


def _returned(
    network: nn.Module, width: int, size: int, spatial_dims: SpatialDims
) -> tuple[int | None, str]:
    """Return the output channels for an image of `width` channels, or None and the reason."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, width, *(size,) * spatial_dims, dtype=like.dtype, device=like.device)
    try:
        out = network(image)
    except Exception as error:  # layers raise different exceptions for a wrong number of channels
        return None, f"{type(error).__name__}: {error}"
    if isinstance(out, Tensor) and out.ndim in (2, 2 + spatial_dims):
        return out.shape[1], ""
    what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    return None, f"it returned {what}"


def _widths(network: nn.Module, spatial_dims: SpatialDims) -> list[int]:
    """Return possible numbers of input channels: those of the layers in order, then usual ones."""
    named = [
        width
        for module in network.modules()
        for name in WIDTHS
        if isinstance(width := getattr(module, name, None), int) and width > 0
    ][:MANY]
    blocks = [named[0] // edge**spatial_dims for edge in (2, 4)] if named else []
    return [width for width in dict.fromkeys([*named, 3, 1, *blocks]) if width > 0]
