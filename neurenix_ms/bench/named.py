"""Networks by name: those of this package, and any that can be imported."""

import ast
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

import neurenix_ms
from neurenix_ms._core.io.stored import class_named
from neurenix_ms.registry import create, get_preset, list_models
from neurenix_ms.registry.building import similar

Shape = tuple[int, ...]


def network_named(words: str, shape: Shape | list[Shape]) -> nn.Module:
    """Build a network for inputs of a shape.

    Arguments that the constructor needs and neither `words` nor the preset have are filled in where the
    shape tells them: `in_channels`, `spatial_dims`, and 1 for `out_channels`.

    Args:
        words: A public name of this package, a name of `list_models` or a dotted name, with or without
            a call of literals: "UNet", "UNet(1, 2, features=[8, 16])", "unet_milesial(in_channels=1)",
            "torchvision.models.resnet18".
        shape: `(B, C, *S)`, or a list of them for a network of a list of feature maps.

    Raises:
        ValueError: If it is no such name or call, or makes something else.
        ImportError: If the module of a dotted name cannot be imported.

    Examples:
        >>> network_named("Conv2d(3, 8, 1)", (1, 3, 4, 4))
        Traceback (most recent call last):
        ...
        ValueError: a network must be a class of neurenix_ms, in list_models(), or a dotted name, ...
        >>> network_named("torch.nn.Conv2d(3, 8, 1)", (1, 3, 4, 4))
        Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
    """
    name, args, kwargs = _parsed(words)
    if name in list_models():
        return _preset(name, args, kwargs, shape)
    made = _looked_up(name)
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise ValueError(f"a network must be a module or make one, got {name} of {type(made)}")
    found = made(*args, **(_filled_in(made, args, kwargs, shape) | kwargs))
    if not isinstance(found, nn.Module):
        raise ValueError(f"a network must be a module or make one, got {type(found)} from {words}")
    return found


def _parsed(words: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named arguments."""
    try:
        tree = ast.parse(words.strip(), mode="eval").body
        if not isinstance(tree, ast.Call):
            return words.strip(), [], {}
        args = [ast.literal_eval(arg) for arg in tree.args]
        kwargs = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
        return ast.unparse(tree.func), args, kwargs
    except (SyntaxError, ValueError):
        raise ValueError(
            f"a network must be a name, or a call of one with numbers, texts and lists, got {words!r}"
        ) from None


def _preset(
    name: str, args: list[Any], kwargs: dict[str, Any], shape: Shape | list[Shape]
) -> nn.Module:
    if args:
        raise ValueError(f"arguments of {name!r} must be given by name, got {args}")
    preset = get_preset(name)
    given = preset.arguments | kwargs
    make = class_named(preset.cls)
    return create(name, **(_filled_in(make, [], given, shape) | kwargs))


def _looked_up(name: str) -> Any:
    if name in neurenix_ms.__all__:
        return getattr(neurenix_ms, name)
    module, _, last = name.rpartition(".")
    if not module:
        raise ValueError(
            "a network must be a class of neurenix_ms, in list_models(), or a dotted name, "
            f"got {name!r}{similar(name, [*neurenix_ms.__all__, *list_models()])}"
        )
    found = importlib.import_module(module)
    if not hasattr(found, last):
        raise ValueError(f"{module} must have an attribute {last!r}, got none")
    return getattr(found, last)


def _filled_in(
    make: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], shape: Shape | list[Shape]
) -> dict[str, Any]:
    """Return what the shape tells of the arguments that are not given."""
    try:
        taken = list(inspect.signature(make).parameters.values())
    except ValueError:
        return {}
    shapes = shape if isinstance(shape, list) else [shape]
    channels = [one[1] if len(one) > 1 else 1 for one in shapes]
    known: dict[str, Any] = {
        "in_channels": channels if isinstance(shape, list) else channels[0],
        "out_channels": 1,
        "spatial_dims": len(shapes[0]) - 2,
    }
    needed = inspect.Parameter.empty
    return {
        p.name: known[p.name]
        for p in taken[len(args) :]
        if p.name in known
        and p.name not in kwargs
        and (p.default is needed or p.name == "spatial_dims")
    }
