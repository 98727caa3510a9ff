"""Import of networks of je-santos/ms_net."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from neurenix_ms._core.arguments import checked
from neurenix_ms.msnet import MSNet
from neurenix_ms.weights.rename import LOOKED_FOR, as_tensor, fill, rename, unwrapped

RULES = [
    (r"(?:models\.)?(\d+)\.head\.conv\.(\w+)", r"stages.\1.layers.0.conv.\2"),
    (r"(?:models\.)?(\d+)\.body\.block(\d+)\.conv\.(\w+)", r"stages.\1.layers.\2.conv.\3"),
    (r"(?:models\.)?(\d+)\.tail\.0\.(\w+)", r"stages.\1.tail.\2"),
]


@checked
def load_msnet(state_dict: Mapping[str, Any]) -> MSNet:
    """Build an MSNet from a state dict of je-santos/ms_net, with its weights.

    Scales, features and widths are inferred from the arrays.

    Args:
        state_dict: Tensors or NumPy arrays by names such as `models.0.head.conv.weight` (or without
            `models.`, as in files that hold only the list of models). A checkpoint of Lightning, and
            names with the prefixes "module.", "model.", "_orig_mod." or "net.", are accepted too.

    Returns:
        An MSNet in training mode.

    Raises:
        ValueError: If an entry is missing, unexpected or has the wrong shape; the message names it.

    Examples:
        >>> theirs = {"models.0.head.conv.weight": torch.zeros(4, 1, 3, 3, 3)}
        >>> theirs |= {"models.0.head.conv.bias": torch.zeros(4)}
        >>> theirs |= {"models.0.tail.0.weight": torch.zeros(1, 4, 1, 1, 1)}
        >>> theirs |= {"models.0.tail.0.bias": torch.zeros(1)}
        >>> model = load_msnet(theirs)
        >>> model.num_scales, model.num_filters, model.kernel_size
        (1, 4, 3)
    """
    renamed = rename(unwrapped(state_dict), RULES)
    ours = {name: as_tensor(name, value) for name, value in renamed.items()}
    model = MSNet(**_read_off(ours))
    fill(model, ours)
    return model


def _read_off(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the constructor arguments of MSNet, inferred from the arrays."""

    def shape(stage: int) -> torch.Size:
        name = f"stages.{stage}.layers.0.conv.weight"
        if name not in state:
            raise ValueError(
                f"the state dict must have models.{stage}.head.conv.weight, missing {LOOKED_FOR}"
            )
        if not 3 <= state[name].ndim <= 5 or 0 in state[name].shape:
            raise ValueError(
                f"models.{stage}.head.conv.weight must have 3 to 5 axes and no empty one, "
                f"got shape {tuple(state[name].shape)}"
            )
        return state[name].shape

    num_scales = 1 + max((int(re.findall(r"\d+", name)[0]) for name in state), default=0)
    coarsest, finest = shape(0), shape(num_scales - 1)
    layers = [re.fullmatch(r"stages\.0\.layers\.(\d+)\.conv\.weight", name) for name in state]
    growth = shape(num_scales - 2)[0] // finest[0] if num_scales > 1 else 1
    out = state.get("stages.0.tail.weight")
    if out is None or out.ndim == 0:
        raise ValueError("the state dict must have models.0.tail.0.weight of several numbers")
    count = 1 + max(int(match[1]) for match in layers if match)
    if count > len(state):
        raise ValueError(
            f"the state dict must have layers of models.0 up to {count - 1}, got {len(state)} entries"
        )
    return {
        "num_scales": num_scales,
        "num_features": coarsest[1],
        "num_filters": finest[0],
        "filter_growth": growth,
        "num_layers": count,
        "kernel_size": coarsest[2],
        "out_channels": out.shape[0],
        "spatial_dims": len(coarsest) - 2,
    }
