"""Plain implementation of neural implicit flow: one weight vector for every point."""

import torch
from torch import Tensor, nn

from neurenix_ms.implicit import NIF, MultiScaleNIF


class OneWeightVectorPerPoint(nn.Module):
    """Run the ParameterNet for every point, so that every point has its own weights.

    Args:
        ours: The model whose ParameterNet and last layer it uses.
    """

    def __init__(self, ours: NIF | MultiScaleNIF) -> None:
        super().__init__()
        self.parameter_net = ours.parameter_net
        self.last = ours.last
        self.sizes = ours.shape.sizes
        self.multiscale = isinstance(ours, MultiScaleNIF)
        self.omega = ours.shape.omega

    def forward(self, p: Tensor, x: Tensor) -> Tensor:
        weights = self.last(self.parameter_net(p))  # (points, all weights)
        lengths = [i * o for i, o in self.sizes] + [o for _, o in self.sizes]
        parts = weights.split(lengths, dim=1)
        depth = len(self.sizes)
        u = x
        for layer, size in enumerate(self.sizes):
            matrix, bias = parts[layer].view(-1, *size), parts[depth + layer]
            product = torch.einsum("ni,nio->no", u, matrix)
            if layer == depth - 1:
                u = product + bias
            elif self.multiscale:
                u = torch.sin(self.omega * product + bias)
            else:
                y = nn.functional.silu(product + bias)
                u = y if layer == 0 else y + u
        return u

    def forward_grid(self, p: Tensor, x: Tensor) -> Tensor:
        num_points = len(x)
        pairs = self(p.repeat_interleave(num_points, 0), x.repeat(len(p), 1))
        return pairs.view(len(p), num_points, -1)
