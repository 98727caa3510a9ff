"""Networks of one kind in, all of them evaluated at once out: in one product, or one by one."""

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
        """What network k consists of, to be copied from and into."""
        return list(self.networks[k].state_dict().values())

    def unpacked(self) -> list[nn.Module]:
        """The networks with the weights of now."""
        return list(self.networks)


class Stacked(nn.Module):
    """MLPs of equal widths, evaluated together by batched products.

    One product of K matrices costs less than K calls where each call is small. Large batches fill a
    call by themselves, and there the networks are faster one by one.

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
        """What network k consists of, to be copied from and into."""
        return [parameter.detach()[k] for parameter in self.parameters()]

    @torch.no_grad()
    def unpacked(self) -> list[nn.Module]:
        """The networks with the weights of now."""
        for k, network in enumerate(self.originals):
            for i, layer in enumerate(cast(list[nn.Linear], list(network.layers))):
                layer.weight.copy_(self.weights[i][k].T)
                layer.bias.copy_(self.biases[i][k, 0])
        return list(self.originals)


Bank = OneByOne | Stacked


def can_be_stacked(networks: Sequence[nn.Module]) -> bool:
    """Whether all are MLPs of the same widths with an activation known by name."""
    first = networks[0]
    return (
        len(networks) > 1
        and isinstance(first, MLP)
        and not callable(first.act)
        and all(isinstance(n, MLP) and n.config == first.config for n in networks)
    )


def make_bank(networks: Sequence[nn.Module], stacked: bool) -> Bank:
    """A bank of the one kind or the other."""
    return Stacked(cast(list[MLP], list(networks))) if stacked else OneByOne(networks)


def stacking_is_faster(
    networks: Sequence[nn.Module], step: Callable[[Bank], object], rounds: int = 5
) -> bool:
    """Measure a training step of both kinds, on copies.

    Args:
        networks: What would be trained.
        step: One training step of a bank.
        rounds: The fastest of so many steps counts.
    """
    if not can_be_stacked(networks):
        return False
    banks = [make_bank(copy.deepcopy(list(networks)), stacked) for stacked in (False, True)]
    fastest = [float("inf")] * 2
    for _ in range(rounds + 1):  # the first one warms up, and is never the fastest
        for i, bank in enumerate(banks):
            start = time.perf_counter()
            step(bank)
            fastest[i] = min(fastest[i], time.perf_counter() - start)
    return fastest[1] < fastest[0]
