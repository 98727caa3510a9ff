"""Import and export of U-Nets of milesial/Pytorch-UNet."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms.multiscale import UNet
from neurenix_ms.weights.rename import LOOKED_FOR, as_tensor, check_names, unwrapped

# path inside one level and one block here -> path there
BLOCK = {
    "layers.0.conv": "double_conv.0",
    "layers.0.norm": "double_conv.1",
    "layers.1.conv": "double_conv.3",
    "layers.1.norm": "double_conv.4",
}


@checked
def load_unet(state_dict: Mapping[str, Any]) -> UNet:
    """Build a UNet from a state dict of milesial/Pytorch-UNet, with its weights.

    Widths, kind of upsampling and biases are inferred from the arrays. The network has
    `align_corners=True`, with which those networks were trained, and returns the same logits.

    Args:
        state_dict: Tensors or NumPy arrays by names such as `inc.double_conv.0.weight`; the
            `mask_values` entry of released checkpoints is ignored. A checkpoint of Lightning, and names
            with the prefixes "module.", "model.", "_orig_mod." or "net.", are accepted too.

    Returns:
        A UNet in training mode.

    Raises:
        ValueError: If an entry is missing, unexpected or has the wrong shape; the message names it.

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
    """Return the state dict of a UNet with the names and the order of milesial/Pytorch-UNet.

    Use it to continue with the scripts of that project; `save` keeps the settings of a model too. The
    format holds weights only, so the settings must be those of that project: build the model as
    `UNet(3, 2, conv_bias=False, align_corners=True)`, with `bilinear` as there. The convolutions of that
    project have no bias since release v3.0; keep `conv_bias` at True for older releases.

    Args:
        model: A 2-D UNet of any widths, with all other settings at their defaults.

    Raises:
        ValueError: If a setting or a layer of the model has no counterpart in that project, so that its
            network would compute something else; the message names it.

    Examples:
        >>> from neurenix_ms import UNet
        >>> model = UNet(1, 1, [4, 8], conv_bias=False, align_corners=True)
        >>> list(export_unet(model))[:2]
        ['inc.double_conv.0.weight', 'inc.double_conv.1.weight']
    """
    _check_plain(model)
    return _named(model)


def _check_plain(model: UNet) -> None:
    """Raise unless the model is equal to the one that `load_unet` builds from its weights."""
    sizes = ("in_channels", "out_channels", "features", "bottleneck_channels", "bilinear")
    # None leaves out the bias where a norm follows, which is the case for all convolutions here
    kept = {name: getattr(model, name) for name in sizes} | {"conv_bias": bool(model.conv_bias)}
    with torch.device("meta"):
        twin = UNet(**kept, align_corners=True)
    given = model.config | {"conv_bias": bool(model.conv_bias)}
    config = twin.config
    config["align_corners"] = config.pop(
        "align_corners"
    )  # moved to the end, so that the message names other differences first
    for name, wanted in config.items():
        unused = name == "remember" or (name == "align_corners" and not model.bilinear)
        own = name in ("norm", "act") and callable(given[name])  # its layers are compared below
        if not unused and not own and given[name] != wanted:
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
    """Return the class of every module and the settings of every layer that affect inference."""
    unimportant = r"(, )?(align_corners=\w+|momentum=[\d.e-]+|inplace=True)"
    described = []
    for name, module in model.named_modules():
        if name:  # the settings of the model itself are compared elsewhere
            what = type(module).__name__ if list(module.children()) else str(module)
            described.append(f"{name}: {re.sub(unimportant, '', what)}")
    return described


def _named(model: UNet) -> dict[str, Tensor]:
    return {
        their_name(name, len(model.features)): value for name, value in model.state_dict().items()
    }


def their_name(name: str, num_levels: int) -> str:
    """Return the name in milesial/Pytorch-UNet of the entry `name` of a UNet."""
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
    """Return the constructor arguments of UNet, inferred from the arrays."""

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
