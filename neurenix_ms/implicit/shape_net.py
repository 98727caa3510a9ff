"""Network over coordinates with generated weights: its layers, and products with these weights."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["chain", "shortcut", "blocks"]
Linear = Callable[[int, Tensor], Tensor]


class Shape(nn.Module):
    """Connections of the layers of a ShapeNet, without weights.

    A layer is described by the units that its nodes belong to. Without shortcuts a layer reads the
    nodes of the previous one. With shortcuts every node adds to its unit, a unit without any node so
    far is zero and omitted, and a layer reads all units that have nodes so far. In a residual block
    (two layers) only the second adds, and the sum is halved.

    Args:
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        nodes: Units of each layer except the output layer; without pruning, all units.
        kind: "chain" (no shortcuts), "shortcut" (around every hidden layer), "blocks" (residual).
        act: The activation of all layers but the last.
        omega: Factor of the product of inputs and weights in all layers but the last.

    Shape:
        `(..., N, coordinate_dim)` -> `(..., N, out_channels)`
    """

    def __init__(
        self,
        coordinate_dim: int,
        out_channels: int,
        nodes: Sequence[Sequence[int]],
        kind: Kind,
        act: nn.Module,
        omega: float = 1.0,
    ) -> None:
        super().__init__()
        self.nodes = [list(units) for units in nodes]
        self.kind = kind
        self.act = act
        self.omega = omega
        self.reads: list[list[int]] = [list(range(coordinate_dim))]  # units of each layer's inputs
        stream = self.nodes[0]
        for layer, units in enumerate(self.nodes[1:], 1):
            self.reads.append(self.nodes[layer - 1] if self.ends_block(layer) else stream)
            if kind == "chain":
                stream = units
            elif self.adds(layer):
                known = set(stream)
                stream = [*stream, *(unit for unit in units if unit not in known)]
                place = {unit: i for i, unit in enumerate(stream)}
                places = torch.tensor([place[unit] for unit in units])
                self.register_buffer(f"places_{layer}", places, persistent=False)
        self.reads.append(stream)
        widths = [*map(len, self.nodes), out_channels]
        self.sizes = [(len(rows), width) for rows, width in zip(self.reads, widths, strict=True)]

    @property
    def num_layers(self) -> int:
        """Number of layers, including the output layer."""
        return len(self.sizes)

    @property
    def num_weights(self) -> int:
        """Number of all weights and biases."""
        return sum(i * o + o for i, o in self.sizes)

    def ends_block(self, layer: int) -> bool:
        """Return whether a layer is the second of a residual block."""
        return self.kind == "blocks" and layer % 2 == 0 and 0 < layer < len(self.nodes)

    def adds(self, layer: int) -> bool:
        """Return whether the nodes of a layer add to the values of their units."""
        return layer > 0 and (self.kind == "shortcut" or self.ends_block(layer))

    def readers(self, layer: int) -> list[int]:
        """Return the layers that read the nodes of a layer."""
        if self.kind == "chain" or self.ends_block(layer + 1):
            return [layer + 1]
        return [i for i in range(layer + 1, self.num_layers) if not self.ends_block(i)]

    def factor(self, layer: int) -> float:
        """Return the factor of the product of inputs and weights."""
        return 1.0 if layer == self.num_layers - 1 else self.omega

    def slices(self) -> tuple[list[slice], list[slice]]:
        """Return the slices of matrices, `(in, out)` row by row, and of biases in a weight vector."""
        lengths = [i * o for i, o in self.sizes] + [o for _, o in self.sizes]
        ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        parts = [slice(a, b) for a, b in pairwise(ends)]
        return parts[: self.num_layers], parts[self.num_layers :]

    def forward(self, x: Tensor, linear: Linear) -> Tensor:
        """Evaluate the field at `(..., N, d)`; `linear(layer, u)` computes weights times u plus bias.

        Inside, units come before points: `u` is `(..., units, N)`. So units are contiguous rows, which
        are added, omitted and multiplied as a whole.
        """
        u = h = self.act(linear(0, x.mT))
        for layer in range(1, self.num_layers - 1):
            h = self.act(linear(layer, h))
            if self.kind == "chain":
                u = h
            elif self.adds(layer):
                h = u = self._added(layer, u, h)
        return linear(self.num_layers - 1, u).mT.contiguous()

    def _added(self, layer: int, u: Tensor, h: Tensor) -> Tensor:
        new = len(self.reads[layer + 1]) - u.shape[-2]
        places = self.get_buffer(f"places_{layer}")
        if new == 0 and self.nodes[layer] == self.reads[layer + 1]:
            u = u + h
        else:
            u = F.pad(u, (0, 0, 0, new)).index_add(-2, places, h)
        return 0.5 * u if self.kind == "blocks" else u


class ShapeNet(nn.Module):
    """Field of one parameter vector: a network of coordinates with fixed weights.

    `at` of an implicit model returns it; export it, trace it, or call it on any mesh.

    Args:
        shape: Connections of its layers.
        weights: All weights in one vector, in the order of `shape.slices()`.

    Shape:
        `(..., coordinate_dim)` -> `(..., out_channels)`
    """

    def __init__(self, shape: Shape, weights: Tensor) -> None:
        super().__init__()
        self.shape = shape
        matrices, biases = shape.slices()
        for layer, (size, m, b) in enumerate(zip(shape.sizes, matrices, biases, strict=True)):
            self.register_buffer(f"matrix_{layer}", weights[m].view(size).clone())
            self.register_buffer(f"bias_{layer}", weights[b].clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.shape(x.flatten(0, -2), self._linear)
        return y.unflatten(0, x.shape[:-1])

    def _linear(self, layer: int, u: Tensor) -> Tensor:
        matrix, bias = self.get_buffer(f"matrix_{layer}"), self.get_buffer(f"bias_{layer}")
        return torch.addmm(bias[:, None], matrix.mT, u, alpha=self.shape.factor(layer))


def for_pairs(shape: Shape, table: Tensor, z: Tensor) -> Linear:
    """Return the linear layers for pairs of a latent vector and a point, without weights per pair.

    Weights are linear in the latent vector, `W(z) = B + sum_k z_k A_k`, so the product of a point with
    its weights is a product of all `(1, z_k) u` with `latent_dim + 1` matrices shared by all pairs.

    Args:
        shape: The layers.
        table: B and the A_k, `(latent_dim + 1, num_weights)`.
        z: 1 and the latent vector of each pair, `(N, latent_dim + 1)`.
    """
    matrices, biases = shape.slices()
    factors = z.mT.contiguous()

    def linear(layer: int, u: Tensor) -> Tensor:
        matrix = table[:, matrices[layer]].reshape(-1, shape.sizes[layer][1])
        bias = table[:, biases[layer]].mT @ factors
        spread = (factors[:, None] * u).flatten(0, 1)
        return torch.addmm(bias, matrix.mT, spread, alpha=shape.factor(layer))

    return linear


def for_grid(shape: Shape, weights: Tensor) -> Linear:
    """Return the linear layers for every parameter at every point: one set of weights per parameter.

    Args:
        shape: The layers.
        weights: One row of weights per parameter, `(T, num_weights)`.
    """
    matrices, biases = shape.slices()

    def linear(layer: int, u: Tensor) -> Tensor:
        matrix = weights[:, matrices[layer]].unflatten(1, shape.sizes[layer])
        bias = weights[:, biases[layer], None]
        u = u.expand(len(weights), -1, -1)
        return torch.baddbmm(bias, matrix.mT, u, alpha=shape.factor(layer))

    return linear


def siren_weights(shape: Shape) -> Tensor:
    """Return a vector of initial weights for sine layers (Sitzmann et al. 2020, section 3.2)."""
    matrices, biases = shape.slices()
    weights = torch.empty(shape.num_weights)
    for layer, ((width, _), m, b) in enumerate(zip(shape.sizes, matrices, biases, strict=True)):
        bound = 1 / width if layer == 0 else math.sqrt(6 / width) / shape.omega
        weights[m].uniform_(-bound, bound)
        weights[b].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))
    return weights
