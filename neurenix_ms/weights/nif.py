"""Import of neural implicit flows of pswpswpsw/nif."""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_number, shown
from neurenix_ms._core.dims import choose
from neurenix_ms.implicit import NIF, LastLayerNIF, MultiScaleNIF
from neurenix_ms.weights.rename import Rules, as_tensor, fill, rename, unwrapped

MOST_LAYERS, MOST_UNITS = 1000, 2**16  # of a ShapeNet, whose sizes come from the config
Model = NIF | MultiScaleNIF | LastLayerNIF
KINDS = {"w": "weight", "b": "bias"}
RULES: Rules = [
    (
        r"pnet\.(first|bottleneck)\.([wb])",
        lambda m: f"parameter_net.{m[1]}.{KINDS[m[2]]}",
    ),
    (r"pnet\.hidden(\d+)\.([wb])", lambda m: f"parameter_net.hidden.{m[1]}.{KINDS[m[2]]}"),
    (
        r"pnet\.hidden(\d+)\.([wb])([12])",
        lambda m: f"parameter_net.hidden.{m[1]}.{int(m[3]) - 1}.{KINDS[m[2]]}",
    ),
    (r"pnet\.last\.([wb])", lambda m: f"last.{KINDS[m[1]]}"),
]
BASIS_RULES: Rules = [
    (r"snet\.first\.([wb])", lambda m: f"shape_layers.0.{KINDS[m[1]]}"),
    (r"snet\.hidden(\d+)\.([wb])", lambda m: f"shape_layers.{int(m[1]) + 1}.{KINDS[m[2]]}"),
    (
        r"snet\.hidden(\d+)\.([wb])([12])",
        lambda m: f"shape_layers.{2 * int(m[1]) + int(m[3])}.{KINDS[m[2]]}",
    ),
    (r"snet\.out_bias", "out_bias"),
]
VARIANTS: dict[str, type[Model]] = {
    "NIF": NIF,
    "PNIF": NIF,
    "NIFMultiScale": MultiScaleNIF,
    "NIFMultiScaleLastLayerParameterized": LastLayerNIF,
}


@checked
def load_nif(weights: Mapping[str, Any], config: Mapping[str, Any] | str) -> Model:
    """Build an implicit model from arrays of pswpswpsw/nif, with their weights.

    The sizes of the ParameterNet are inferred from the arrays. The sizes of a ShapeNet whose weights
    the ParameterNet computes are not in the arrays and come from the config.

    Args:
        weights: Tensors or arrays by names such as `pnet.first.w`, matrices `(in, out)`.
        config: Settings of the model, as a mapping or as JSON: `variant`, `shape_net`,
            `parameter_net`.

    Returns:
        A NIF, MultiScaleNIF or LastLayerNIF.

    Raises:
        ValueError: If an entry of either is missing, unexpected, unknown or has the wrong shape.

    Examples:
        >>> import torch
        >>> sizes = {"first": (1, 4), "hidden0": (4, 4), "bottleneck": (4, 1), "last": (1, 13)}
        >>> weights = {f"pnet.{name}.w": torch.zeros(size) for name, size in sizes.items()}
        >>> weights |= {f"pnet.{name}.b": torch.zeros(size[1]) for name, size in sizes.items()}
        >>> shape_net = {"input_dim": 1, "output_dim": 1, "units": 2, "nlayers": 1}
        >>> config = {"variant": "NIF", "shape_net": shape_net, "parameter_net": {}}
        >>> load_nif(weights, config)(torch.zeros(5, 1), torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """
    settings = _settings(config)
    cls = choose(VARIANTS, settings.get("variant"), "variant")
    part = _part(settings, "shape_net")
    depth = check_integer("shape_net.nlayers", part.get("nlayers", 0), 0, MOST_LAYERS)
    blocks = bool(part.get("use_resblock"))
    bottleneck = 1 + depth * (2 if blocks else 1)
    rules = [
        *RULES,
        (
            r"snet\.bottleneck\.([wb])",
            lambda m: f"shape_layers.{bottleneck}.{KINDS[m[1]]}",
        ),
        *BASIS_RULES,
    ]
    arrays = {name: as_tensor(name, value) for name, value in unwrapped(weights).items()}
    matrices = {name: a.mT if a.ndim == 2 else a for name, a in arrays.items()}
    ours = rename(matrices, rules if cls is LastLayerNIF else RULES)
    model = cls(**_arguments(cls, settings, arrays))
    fill(model, ours if cls is LastLayerNIF else ours | {"output_mask": model.output_mask})
    return model


def _settings(config: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        settings = json.loads(config) if isinstance(config, str) else config
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config must be JSON, got {shown(config)}: {error}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"config must be a dict of settings, got {shown(settings)}")
    return settings


def _arguments(
    cls: type[Model], settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the constructor arguments, inferred from the arrays or else from the config."""
    shape_net, parameter_net = (_part(settings, name) for name in ("shape_net", "parameter_net"))
    for name in ("pnet.first.w", "pnet.bottleneck.w", "pnet.last.w"):
        if name not in arrays:
            raise ValueError(f"arrays must have {name}, which is missing")
        if arrays[name].ndim != 2:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(arrays[name].shape)}")
    hidden = [re.match(r"pnet\.hidden(\d+)\.", name) for name in arrays]
    found = 1 + max((int(match[1]) for match in hidden if match), default=-1)
    act = _act(parameter_net)
    arguments = {
        "parameter_dim": arrays["pnet.first.w"].shape[0],
        "coordinate_dim": _count(shape_net, "input_dim"),
        "out_channels": _count(shape_net, "output_dim"),
        "shape_width": _count(shape_net, "units"),
        "shape_depth": _count(shape_net, "nlayers", MOST_LAYERS),
        "parameter_width": arrays["pnet.first.w"].shape[1],
        "parameter_depth": check_integer(
            "parameter_net.nlayers", parameter_net.get("nlayers", found), 0, len(arrays)
        ),
        "latent_dim": arrays["pnet.bottleneck.w"].shape[1],
        "parameter_shortcut": not parameter_net.get("no_shortcut", False),
    }
    if cls is NIF:
        if _act(shape_net) != act:
            raise ValueError(
                f"both networks of a NIF must have one activation, got {_act(shape_net)!r} in "
                f"shape_net and {act!r} in parameter_net"
            )
        return arguments | {"act": act}
    return arguments | {
        "omega_0": check_number("shape_net.omega_0", shape_net["omega_0"]),
        "residual_blocks": bool(shape_net.get("use_resblock")),
        "weight_init_factor": check_number(
            "shape_net.weight_init_factor", shape_net.get("weight_init_factor", 0.01)
        ),
        "parameter_act": act,
        "parameter_residual_blocks": bool(parameter_net.get("use_resblock")),
        "parameter_omega_0": check_number(
            "parameter_net.omega_0", parameter_net.get("omega_0", 30.0)
        ),
    }


def _count(part: Mapping[str, Any], key: str, most: int = MOST_UNITS) -> int:
    return check_integer(f"shape_net.{key}", part[key], 0, most)


def _act(part: Mapping[str, Any]) -> str:
    return part.get("activation", "swish")


class _Part(dict[str, Any]):
    """A part of the config that raises a `ValueError` for a missing key."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"config must have {self.name}.{key}, which is missing")


def _part(settings: Mapping[str, Any], name: str) -> _Part:
    if not isinstance(settings.get(name), Mapping):
        raise ValueError(f"config must have {name}, which is missing")
    return _Part(name, settings[name])
