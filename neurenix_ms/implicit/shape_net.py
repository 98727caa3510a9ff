"""Coordinates and a way to apply generated weights in, field values out: the network over space."""

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
    """How the layers of a ShapeNet hang together; it has no weights of its own.

    A layer is known by the units that its nodes belong to. Without shortcuts a layer reads the nodes
    of the one before. With shortcuts every node adds to its unit, a unit that no node has written yet is
    zero and takes no part, and a layer reads all units written so far. In a residual block (two
    layers) only the second adds, and the sum is halved.

    Args:
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        nodes: Units of each layer, the output layer left out; of a whole network all of them.
        kind: "chain" (no shortcuts), "shortcut" (around every hidden layer), "blocks" (residual).
        act: The activation of all layers but the last.
        omega: What inputs of those layers are multiplied by once they met their weights.

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
        self.reads: list[list[int]] = [list(range(coordinate_dim))]  # what each layer's rows are
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
        """Number of layers, the output layer included."""
        return len(self.sizes)

    @property
    def num_weights(self) -> int:
        """Number of all weights and biases."""
        return sum(i * o + o for i, o in self.sizes)

    def ends_block(self, layer: int) -> bool:
        """Whether a layer is the second of a residual block."""
        return self.kind == "blocks" and layer % 2 == 0 and 0 < layer < len(self.nodes)

    def adds(self, layer: int) -> bool:
        """Whether the nodes of a layer add to what their units hold already."""
        return layer > 0 and (self.kind == "shortcut" or self.ends_block(layer))

    def readers(self, layer: int) -> list[int]:
        """Layers that read what the nodes of a layer give."""
        if self.kind == "chain" or self.ends_block(layer + 1):
            return [layer + 1]
        return [i for i in range(layer + 1, self.num_layers) if not self.ends_block(i)]

    def factor(self, layer: int) -> float:
        """What the product of inputs and weights is multiplied by."""
        return 1.0 if layer == self.num_layers - 1 else self.omega

    def slices(self) -> tuple[list[slice], list[slice]]:
        """Where the matrices, `(in, out)` row by row, and the biases lie in one vector of weights."""
        lengths = [i * o for i, o in self.sizes] + [o for _, o in self.sizes]
        ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        parts = [slice(a, b) for a, b in pairwise(ends)]
        return parts[: self.num_layers], parts[self.num_layers :]

    def forward(self, x: Tensor, linear: Linear) -> Tensor:
        """The field at `(..., N, d)`, with `linear(layer, u)` for weights times inputs plus bias.

        Inside, units come before points: `u` is `(..., units, N)`. Units are then added to, left out and
        multiplied as whole rows of memory.
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
    """The field of one parameter: a network of coordinates alone, with fixed weights.

    It is what `at` of an implicit model gives, to be exported, traced, or called on any mesh.

    Args:
        shape: How its layers hang together.
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
    """Products for pairs of a latent vector and a point, none of which gets weights of its own.

    Weights are linear in the latent vector, `W(z) = B + sum_k z_k A_k`, so the product of a point with
    its weights is a product of all `(1, z_k) u` with the `latent_dim + 1` matrices that all share.

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
    """Products for every parameter with every point: one set of weights per parameter.

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
    """One vector of weights by the rules for sine layers (Sitzmann et al. 2020, section 3.2)."""
    matrices, biases = shape.slices()
    weights = torch.empty(shape.num_weights)
    for layer, ((width, _), m, b) in enumerate(zip(shape.sizes, matrices, biases, strict=True)):
        bound = 1 / width if layer == 0 else math.sqrt(6 / width) / shape.omega
        weights[m].uniform_(-bound, bound)
        weights[b].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))
    return weights
