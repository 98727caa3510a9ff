"""Networks of torchvision and timm by name, without a download by default."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# options that download, read a file, or have another name in Backbone
REFUSED = ("weights", "pretrained", "checkpoint", "cache_dir", "features_only")


def named_network(name: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    """Return a network of torchvision, or a feature extractor of timm.

    Args:
        name: Name in torchvision, else in timm; with the prefix "timm/" in timm only.
        weights: Weights to download; None for none.
        options: Arguments of the function that builds the network.
    """
    refused = [option for option in options if option.startswith(REFUSED)]
    if refused:
        raise ValueError(
            "options must not select weights; use weights= of Backbone for pretrained ones, "
            f"got {', '.join(refused)}"
        )
    from torchvision import models

    if name in models.list_models():
        return _of_torchvision(name, weights, options)
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a torchvision model; timm models need pip install 'neurenix_ms[timm]'"
        ) from error
    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        raise ValueError(f"network must name a model of torchvision or timm, got {name!r}")
    return _built(
        name,
        options,
        lambda: timm.create_model(
            bare, features_only=True, pretrained=weights is not None, **options
        ),
    )


def _of_torchvision(name: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    parameters = inspect.signature(models.get_model_builder(name)).parameters
    extra: dict[str, Any] = {}
    if weights is None and "weights_backbone" in parameters:
        # detectors and segmenters download the weights of their backbone by default
        extra["weights_backbone"] = None
    return _built(
        name, options, lambda: models.get_model(name, weights=weights, **options, **extra)
    )


def _built(name: str, options: Mapping[str, Any], build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        reason: Exception = error
    except (RuntimeError, ValueError) as error:
        reason = error
    raise ValueError(
        f"{name!r} must be a network that can be built with options {dict(options)}, got "
        f"{type(reason).__name__}: {reason}"
    ) from reason
