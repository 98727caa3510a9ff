"""U-Nets of milesial/Pytorch-UNet: their state dicts in, a UNet out, and back."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms.multiscale import UNet
from neurenix_ms.weights.rename import LOOKED_FOR, as_tensor, check_names, unwrapped

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
            `mask_values` entry of released checkpoints is ignored. A checkpoint of Lightning is taken
            too, and names that a tool has put "module.", "model.", "_orig_mod." or "net." before.

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
    entries = unwrapped(state_dict, ignored=("mask_values",))
    theirs = {name: as_tensor(name, value) for name, value in entries.items()}
    model = UNet(**_read_off(theirs), align_corners=True)
    wanted = _named(model)
    check_names(theirs, wanted)
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
    settings too. The format holds weights only, so the settings must be those of that project: build
    the model as `UNet(3, 2, conv_bias=False, align_corners=True)`, with `bilinear` as there. Its
    convolutions have had no bias since release v3.0; leave `conv_bias` at True for older ones.

    Args:
        model: A 2-D UNet with all other settings at their defaults, widths apart.

    Raises:
        ValueError: If a setting or a layer of the model has no counterpart there, so that the network
            that loads the file would compute something else; the message names it.

    Examples:
        >>> from neurenix_ms import UNet
        >>> model = UNet(1, 1, [4, 8], conv_bias=False, align_corners=True)
        >>> list(export_unet(model))[:2]
        ['inc.double_conv.0.weight', 'inc.double_conv.1.weight']
    """
    _check_plain(model)
    return _named(model)


def _check_plain(model: UNet) -> None:
    """Refuse a model that is not the one that `load_unet` would build from its weights."""
    sizes = ("in_channels", "out_channels", "features", "bottleneck_channels", "bilinear")
    # None leaves the bias out where a norm follows, as everywhere here
    kept = {name: getattr(model, name) for name in sizes} | {"conv_bias": bool(model.conv_bias)}
    with torch.device("meta"):
        twin = UNet(**kept, align_corners=True)
    given = model.config | {"conv_bias": bool(model.conv_bias)}
    config = twin.config
    config["align_corners"] = config.pop(
        "align_corners"
    )  # last: it is the least of what may differ
    for name, wanted in config.items():
        unused = name == "remember" or (name == "align_corners" and not model.bilinear)
        spelt = name in ("norm", "act") and callable(given[name])  # its layers are compared below
        if not unused and not spelt and given[name] != wanted:
            raise ValueError(
                f"export_unet needs a UNet with {name} {wanted!r}, got {shown(given[name])}; "
                "milesial/Pytorch-UNet has no other"
            )
    same_forward = type(model).forward is UNet.forward and "forward" not in vars(model)
    layers = zip(_layers(model), _layers(twin), strict=False)
    other = next((f"{ours} for {theirs}" for ours, theirs in layers if ours != theirs), None)
    if other or not same_forward or len(_layers(model)) != len(_layers(twin)):
        raise ValueError(
            "export_unet needs a UNet with the layers it was built with, got "
            f"{other or type(model).__name__ + ' with others'}"
        )


def _layers(model: UNet) -> list[str]:
    """The kind of every module and the settings of every layer, but not those of training alone."""
    unimportant = r"(, )?(align_corners=\w+|momentum=[\d.e-]+|inplace=True)"
    described = []
    for name, module in model.named_modules():
        if name:  # of the model itself, the settings are compared
            what = type(module).__name__ if list(module.children()) else str(module)
            described.append(f"{name}: {re.sub(unimportant, '', what)}")
    return described


def _named(model: UNet) -> dict[str, Tensor]:
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
                f"a state dict of milesial/Pytorch-UNet needs {name}, which is missing {LOOKED_FOR}"
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
