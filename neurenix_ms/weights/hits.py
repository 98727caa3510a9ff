"""Import of networks of luckystarufo/multiscale_HiTS."""

from collections.abc import Mapping
from typing import Any

from neurenix_ms._core.arguments import checked
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import HierarchicalTimeStepper, TimeStepper
from neurenix_ms.weights.rename import LOOKED_FOR, as_tensor, fill, rename, unwrapped

RULES = [(r"(?:increment\.)?Linear_(\d+)\.(weight|bias)", r"layers.\1.\2")]


@checked
def load_hits(state_dicts: Mapping[int, Mapping[str, Any]]) -> HierarchicalTimeStepper:
    """Build a hierarchy from state dicts of luckystarufo/multiscale_HiTS, with their weights.

    Widths are inferred from the arrays. The networks are ReLU networks, as published.

    Args:
        state_dicts: State dicts by stride in steps of dt, from names such as
            `increment.Linear_0.weight` to tensors or NumPy arrays. `read_pickle` reads them from a file
            of a whole model. Checkpoints of Lightning, and names with the prefixes "module.", "model.",
            "_orig_mod." or "net.", are accepted too.

    Returns:
        A hierarchy in training mode.

    Raises:
        ValueError: If there is no state dict, or an entry is missing, unexpected or has the wrong shape;
            the message names it.

    Examples:
        >>> import torch
        >>> one = {"Linear_0.weight": torch.zeros(2, 2), "Linear_0.bias": torch.zeros(2)}
        >>> load_hits({1: one, 8: one}).step_sizes
        [8, 1]
    """
    if not state_dicts:
        raise ValueError("load_hits needs a state dict for at least one stride, got none")
    return HierarchicalTimeStepper(
        [TimeStepper(_network(state, stride), stride) for stride, state in state_dicts.items()]
    )


def _network(state: Mapping[str, Any], stride: int) -> MLP:
    try:
        renamed = rename(unwrapped(state), RULES)
        ours = {name: as_tensor(name, value) for name, value in renamed.items()}
        num_layers = 1 + max((int(name.split(".")[1]) for name in ours), default=0)
        for i in range(num_layers):
            for kind in ("weight", "bias"):
                if f"layers.{i}.{kind}" not in ours:
                    raise ValueError(
                        f"the state dict must have increment.Linear_{i}.{kind}, missing {LOOKED_FOR}"
                    )
        for name, value in ours.items():
            if value.ndim != (2 if name.endswith("weight") else 1):
                raise ValueError(f"{name} must be a matrix or a vector, got {tuple(value.shape)}")
        weights = [ours[f"layers.{i}.weight"] for i in range(num_layers)]
        widths = [weights[0].shape[-1], *map(len, weights)]
        network = MLP(widths[0], widths[-1], widths[1:-1]).to(weights[0].dtype)
        fill(network, ours)
    except ValueError as error:
        raise ValueError(f"step size {stride}: {error}") from error
    return network
