"""Networks built by name."""

import copy
import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import Configured
from neurenix_ms._core.io.stored import class_named
from neurenix_ms.registry.dynamics import DYNAMICS
from neurenix_ms.registry.networks import NETWORKS
from neurenix_ms.registry.parts import PARTS
from neurenix_ms.registry.preset import Preset

PRESETS = {preset.name: preset for preset in (*NETWORKS, *PARTS, *DYNAMICS)}
INSIDE = {"class", "config"}  # of a dict that stands for a network


@checked
def list_models(pattern: str | None = None) -> list[str]:
    """Return the names that `create` takes, in alphabetical order.

    Use it to see which networks and presets there are; `get_preset` describes one.

    Args:
        pattern: Part of the names, or a pattern with `*`, `?` and `[...]`, as of a shell; None for all.

    Examples:
        >>> list_models("nnunet*")
        ['nnunet_2d', 'nnunet_3d_fullres']
        >>> list_models("milesial")
        ['unet_milesial', 'unet_milesial_bilinear']
    """
    if pattern is None:
        return sorted(PRESETS)
    whole = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    return sorted(name for name in PRESETS if fnmatchcase(name, whole.lower()))


@checked
def get_preset(name: str) -> Preset:
    """Return what a name stands for: class, arguments, description and source.

    Use it to read where a preset is from, and what `create` changes if it gets arguments. The result
    is a copy.

    Args:
        name: One of `list_models()`.

    Raises:
        ValueError: If there is no such name; the message has similar ones.

    Examples:
        >>> preset = get_preset("unet_milesial")
        >>> preset.cls, preset.source
        ('UNet', 'milesial/Pytorch-UNet, UNet(3, 2)')
    """
    if name not in PRESETS:
        raise ValueError(
            f"a network must be one of list_models(), got {name!r}{similar(name, PRESETS)}"
        )
    return copy.deepcopy(PRESETS[name])


@checked
def create(name: str, /, **overrides: Any) -> nn.Module:
    """Build a network by its name, with new weights.

    Use it where a network is chosen by a setting, or to get a published one with its arguments. The
    result is an ordinary module of its class: `config`, `save` and `save_pretrained` work.

    Args:
        name: One of `list_models()`.
        **overrides: Arguments of the class that replace those of the preset. A network inside is a
            module, or a dict of "class" and "config".

    Raises:
        ValueError: If there is no such name or argument, the message has similar ones; or if the
            arguments do not fit each other.

    Examples:
        >>> import torch
        >>> model = create("unet", spatial_dims=3, in_channels=1, features=[4, 8])
        >>> model(torch.zeros(1, 1, 9, 8, 7)).shape
        torch.Size([1, 1, 9, 8, 7])
        >>> create("unett")
        Traceback (most recent call last):
        ValueError: a network must be one of list_models(), got 'unett'; similar: 'unet', ...
    """
    preset = get_preset(name)
    model = built(preset.cls, preset.arguments | overrides)
    if isinstance(model, Configured):
        model.preset = name
    return model


def built(cls: str, arguments: dict[str, Any]) -> nn.Module:
    """Build an object of a public class of the library, and the networks inside of it.

    Args:
        cls: Name of the class.
        arguments: Its arguments; a dict of "class" and "config" stands for a network.
    """
    if not isinstance(cls, str) or not isinstance(arguments, dict):
        raise ValueError(
            'a network must be given as {"class": a name, "config": its arguments}, got '
            f"{shown({'class': cls, 'config': arguments})}"
        )
    make = class_named(cls)
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for given in arguments:
            if given not in parameters:
                raise ValueError(
                    f"{cls} takes {list(parameters)}, got {given!r}{similar(given, parameters)}"
                )
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.name not in arguments and p.kind is not p.VAR_KEYWORD
    ]
    if missing:
        raise ValueError(f"{cls} needs {missing}, got {sorted(arguments)}")
    return make(**{name: _inside(value) for name, value in arguments.items()})


def _inside(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == INSIDE:
        return built(value["class"], value["config"])
    return [_inside(item) for item in value] if isinstance(value, list) else value


def similar(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that has the names most like a wrong one."""
    close = get_close_matches(name.lower(), names, n=5, cutoff=0.5)
    close += [known for known in names if name and name.lower() in known and known not in close]
    return f"; similar: {', '.join(map(repr, close[:5]))}" if close else ""
