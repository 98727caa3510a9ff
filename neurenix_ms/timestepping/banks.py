"""Banks that evaluate several networks, either in one batched product or one by one."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from neurenix_ms._core.inplace import call_intact
from neurenix_ms.layers.mlp import MLP


class OneByOne(nn.Module):
    """Networks that are called one after another, each on its own batch.

    Shape:
        `(K, B, *D)` -> the same
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.networks, x, strict=True)
        return torch.stack([call_intact(network, y) for network, y in pairs])

    def tensors(self, k: int) -> list[Tensor]:
        """Return the tensors of network k, to copy from and into."""
        return list(self.networks[k].state_dict().values())

    def unpacked(self) -> list[nn.Module]:
        """Return the networks with the current weights."""
        return list(self.networks)


class Stacked(nn.Module):
    """MLPs of equal widths, evaluated together by batched products.

    One batched product of K matrices costs less than K calls if each call is small. For large batches
    the networks are faster one by one.

    Shape:
        `(K, B, D)` -> the same
    """

    def __init__(self, networks: Sequence[MLP]) -> None:
        super().__init__()
        self.originals = list(networks)  # a plain list: their weights are not trained
        layers = zip(*(network.layers for network in networks), strict=True)
        pairs = [
            (torch.stack([a.weight.T for a in same]), torch.stack([a.bias for a in same])[:, None])
            for same in cast(list[tuple[nn.Linear, ...]], list(layers))
        ]
        self.weights = nn.ParameterList(weight.detach().contiguous() for weight, _ in pairs)
        self.biases = nn.ParameterList(bias.detach() for _, bias in pairs)
        self.activation = networks[0].activation

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if i == last else self.activation(x)
        return x

    def tensors(self, k: int) -> list[Tensor]:
        """Return the tensors of network k, to copy from and into."""
        return [parameter.detach()[k] for parameter in self.parameters()]

    @torch.no_grad()
    def unpacked(self) -> list[nn.Module]:
        """Return the networks with the current weights."""
        for k, network in enumerate(self.originals):
            for i, layer in enumerate(cast(list[nn.Linear], list(network.layers))):
                layer.weight.copy_(self.weights[i][k].T)
                layer.bias.copy_(self.biases[i][k, 0])
        return list(self.originals)


Bank = OneByOne | Stacked


def can_be_stacked(networks: Sequence[nn.Module]) -> bool:
    """Return whether all are MLPs of the same widths with an activation given by name.

    A stacked bank leaves shortcuts out, so they must not be trained (see `shortcuts.prepared`).
    """
    first = networks[0]
    return (
        len(networks) > 1
        and isinstance(first, MLP)
        and not callable(first.act)
        and not (first.shortcut and first.linear.weight.requires_grad)
        and all(isinstance(n, MLP) and n.config == first.config for n in networks)
    )


def make_bank(networks: Sequence[nn.Module], stacked: bool) -> Bank:
    """Return a stacked bank, or one that calls the networks one by one."""
    return Stacked(cast(list[MLP], list(networks))) if stacked else OneByOne(networks)


def stacking_is_faster(
    networks: Sequence[nn.Module], step: Callable[[Bank], object], rounds: int = 5
) -> bool:
    """Return whether a training step is faster with a stacked bank, measured on copies.

    Args:
        networks: The networks to train.
        step: One training step of a bank.
        rounds: Number of steps, of which the fastest counts.
    """
    if not can_be_stacked(networks):
        return False
    banks = [make_bank(copy.deepcopy(list(networks)), stacked) for stacked in (False, True)]
    fastest = [float("inf")] * 2
    for _ in range(rounds + 1):  # the first is a warm-up, which is never the fastest
        for i, bank in enumerate(banks):
            start = time.perf_counter()
            step(bank)
            fastest[i] = min(fastest[i], time.perf_counter() - start)
    return fastest[1] < fastest[0]
