"""U-Nets of milesial/Pytorch-UNet: their state dicts in, a UNet out, and back."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.arguments import checked
from neurenix_ms.multiscale import UNet
from neurenix_ms.weights.rename import expect_names

# our path inside one level and one block -> theirs
BLOCK = {
    "layers.0.conv": "double_conv.0",
    "layers.0.norm": "double_conv.1",
    "layers.1.conv": "double_conv.3",
    "layers.1.norm": "double_conv.4",
}


@checked
def load_unet(state_dict: Mapping[str, Any]) -> UNet:
    """Build the UNet that a state dict of milesial/Pytorch-UNet belongs to, and fill it.

    Widths, kind of upsampling and biases are read off the arrays. The network gets
    `align_corners=True`, as those were trained with it, and gives the same logits.

    Args:
        state_dict: Names such as `inc.double_conv.0.weight` to tensors or numpy arrays; the
            `mask_values` entry of released checkpoints is ignored.

    Returns:
        A UNet in training mode.

    Raises:
        ValueError: If an entry is missing, left over or misshapen; the message names it.

    Examples:
        >>> from neurenix_ms import UNet
        >>> model = UNet(3, 1, features=[4, 8], align_corners=True)
        >>> load_unet(export_unet(model)).features
        [4, 8]
    """
    theirs = {
        name: torch.as_tensor(value) for name, value in state_dict.items() if name != "mask_values"
    }
    model = UNet(**_read_off(theirs), align_corners=True)
    wanted = export_unet(model)
    expect_names(theirs, wanted)
    for name, value in wanted.items():
        if theirs[name].shape != value.shape:
            raise ValueError(
                f"{name} must have shape {tuple(value.shape)}, got {tuple(theirs[name].shape)}"
            )
    ours = zip(model.state_dict(), wanted, strict=True)
    model.load_state_dict({own: theirs[name] for own, name in ours})
    return model


@checked
def export_unet(model: UNet) -> dict[str, Tensor]:
    """Give the state dict of a UNet the names and the order of milesial/Pytorch-UNet.

    Use it to go on with the scripts of that project; to keep a model for yourself, `save` keeps its
    settings too.

    Args:
        model: A 2-D UNet of "double" blocks with batch norm. Those networks align corners, so set
            `align_corners=True` where outputs have to be equal.

    Raises:
        ValueError: If the model has no counterpart there; the message says why.

    Examples:
        >>> from neurenix_ms import UNet
        >>> list(export_unet(UNet(1, 1, [4, 8], align_corners=True)))[:2]
        ['inc.double_conv.0.weight', 'inc.double_conv.0.bias']
    """
    plain = {"block": "double", "norm": "batch", "spatial_dims": 2, "kernel_size": 3}
    for name, wanted in plain.items():
        if getattr(model, name) != wanted:
            raise ValueError(
                f"export_unet needs a UNet with {name} {wanted!r}, got {getattr(model, name)!r}"
            )
    return {
        their_name(name, len(model.features)): value for name, value in model.state_dict().items()
    }


def their_name(name: str, num_levels: int) -> str:
    """The name that milesial/Pytorch-UNet gives the entry `name` of our state dict."""
    path, leaf = name.rsplit(".", 1)
    if path == "head.conv":
        return f"outc.conv.{leaf}"
    match = re.fullmatch(r"level((?:\.inner)*)\.(encode|decode)\.(.+)", path)
    assert match is not None
    depth = match[1].count("inner")
    if match[2] == "encode":
        place = "inc" if depth == 0 else f"down{depth}.maxpool_conv.1"
        return f"{place}.{BLOCK[match[3]]}.{leaf}"
    step = f"up{num_levels - depth}"
    if match[3] == "up":
        return f"{step}.up.{leaf}"
    return f"{step}.conv.{BLOCK[match[3].removeprefix('block.')]}.{leaf}"


def _read_off(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of UNet that the arrays tell."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(
                f"a state dict of milesial/Pytorch-UNet needs {name}, which is missing"
            )
        if state[name].ndim != 4:
            raise ValueError(f"{name} must have 4 axes, got shape {tuple(state[name].shape)}")
        return state[name].shape

    first = shape("inc.double_conv.0.weight")
    features = [first[0]]
    while f"down{len(features)}.maxpool_conv.1.double_conv.0.weight" in state:
        features.append(shape(f"down{len(features)}.maxpool_conv.1.double_conv.3.weight")[0])
    if len(features) < 2:
        shape("down1.maxpool_conv.1.double_conv.0.weight")
    *skips, bottom = features
    return {
        "in_channels": first[1],
        "out_channels": shape("outc.conv.weight")[0],
        "features": skips,
        "bottleneck_channels": bottom,
        "bilinear": "up1.up.weight" not in state,
        "conv_bias": "inc.double_conv.0.bias" in state,
    }
