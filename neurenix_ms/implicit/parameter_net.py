"""Network from parameters, such as time or a Reynolds number, to a short latent vector."""

import math

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import check_made
from neurenix_ms._core.dims import choose
from neurenix_ms.layers.naming import ACTIVATIONS, Act


class Sine(nn.Module):
    """Sine activation.

    Shape:
        any -> the same
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


ACTS = {**ACTIVATIONS, "swish": nn.SiLU, "sine": Sine}


def activation(act: Act | str, name: str = "act") -> nn.Module:
    """Return the activation named `act`, or made by it."""
    return check_made(name, act) if callable(act) else choose(ACTS, act, name)()


class ParameterNet(nn.Module):
    """Dense layers from the parameters to the latent vector.

    With sine layers the products with the weights, but not the biases, are multiplied by `omega`.

    Args:
        parameter_dim: Number of parameters.
        width: Width of every layer.
        depth: Number of hidden layers, or residual blocks of two.
        latent_dim: Length of the latent vector.
        act: Name of the activation, or a callable that returns one.
        shortcut: Whether hidden layers add to their inputs; no effect on sine layers and blocks.
        residual_blocks: Whether hidden layers are residual blocks.
        omega: The factor of sine layers.

    Shape:
        `(N, parameter_dim)` -> `(N, latent_dim)`
    """

    def __init__(
        self,
        parameter_dim: int,
        width: int,
        depth: int,
        latent_dim: int,
        act: Act | str,
        *,
        shortcut: bool = True,
        residual_blocks: bool = False,
        omega: float = 30.0,
        act_name: str = "act",
    ) -> None:
        super().__init__()
        self.act = activation(act, act_name)
        self.sine = act == "sine"
        self.shortcut = shortcut
        self.residual_blocks = residual_blocks
        self.omega = omega
        self.first = nn.Linear(parameter_dim, width)
        self.hidden = nn.ModuleList(
            nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
            if residual_blocks
            else nn.Linear(width, width)
            for _ in range(depth)
        )
        self.bottleneck = nn.Linear(width, latent_dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                self._start(layer)

    def forward(self, p: Tensor) -> Tensor:
        h = self._layer(self.first, p)
        for layer in self.hidden:
            h = self._block(layer, h) if self.residual_blocks else self._hidden(layer, h)
        return self.bottleneck(h)

    def _hidden(self, layer: nn.Module, h: Tensor) -> Tensor:
        y = self._layer(layer, h)
        return h + y if self.shortcut and not self.sine else y

    def _block(self, layers: nn.Module, h: Tensor) -> Tensor:
        first, second = layers.children()
        y = self._layer(first, h)
        return 0.5 * (h + self._layer(second, y)) if self.sine else self.act(h + second(y))

    def _layer(self, layer: nn.Module, h: Tensor) -> Tensor:
        if not self.sine:
            return self.act(layer(h))
        return torch.sin(layer(self.omega * h))

    def _start(self, layer: nn.Linear) -> None:
        if not self.sine:
            truncated_normal(layer)
            return
        width = layer.in_features
        bound = 1 / width if layer is self.first else math.sqrt(6 / width) / self.omega
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(layer.bias, -1 / math.sqrt(width), 1 / math.sqrt(width))


def truncated_normal(layer: nn.Linear, deviation: float = 0.1) -> None:
    """Initialize weights and biases as in the published code of neural implicit flow."""
    for value in (layer.weight, layer.bias):
        nn.init.trunc_normal_(value, std=deviation, a=-2 * deviation, b=2 * deviation)
