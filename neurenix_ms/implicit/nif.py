"""A network that reads parameters writes the weights of one that reads coordinates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms.implicit.dense import weights_of
from neurenix_ms.implicit.field import ImplicitField
from neurenix_ms.implicit.parameter_net import (
    ParameterNet,
    Sine,
    activation,
    truncated_normal,
)
from neurenix_ms.implicit.shape_net import Kind, Shape, ShapeNet, for_grid, for_pairs, siren_weights
from neurenix_ms.layers.naming import Act

Nodes = Sequence[Sequence[int]] | None


class WrittenField(ImplicitField):
    """A field whose ShapeNet is written by the ParameterNet as a whole; its nodes can be pruned.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`
    """

    output_mask: Tensor
    shape: Shape
    last: nn.Linear

    @property
    def node_mask(self) -> Tensor:
        """Which nodes are left, `(layers, width)`; narrower layers end in False."""
        _, biases = self.shape.slices()
        alive = [self.output_mask[b] > 0 for b in biases[:-1]]
        return nn.utils.rnn.pad_sequence(alive, batch_first=True, padding_value=False)

    def table(self) -> Tensor:
        """B and the A_k of `W(z) = B + sum_k z_k A_k`, masked, `(latent_dim + 1, num_weights)`."""
        weight, bias = weights_of(self.last)
        return torch.cat([bias[None], weight.mT]) * self.output_mask

    def weights(self, p: Tensor) -> Tensor:
        """All weights of the ShapeNet: matrices `(in, out)` row by row, then biases.

        Args:
            p: Parameters, `(T, parameter_dim)`.

        Returns:
            `(T, num_weights)`: one row per parameter, so not for one parameter per point.
        """
        return with_one(self.latent(p)) @ self.table()

    def _pairs(self, z: Tensor, x: Tensor) -> Tensor:
        return self.shape(x, for_pairs(self.shape, self.table(), with_one(z)))

    def _grid(self, z: Tensor, x: Tensor) -> Tensor:
        return self.shape(x, for_grid(self.shape, with_one(z) @ self.table()))

    def _fixed(self, z: Tensor) -> nn.Module:
        return ShapeNet(self.shape, (with_one(z) @ self.table())[0])

    def _write(self, parameter_net: ParameterNet, shape: Shape, latent_dim: int) -> None:
        self.parameter_net = parameter_net
        self.shape = shape
        self.last = nn.Linear(latent_dim, shape.num_weights)
        self.register_buffer("output_mask", torch.ones(shape.num_weights))


class NIF(WrittenField):
    """Neural implicit flow: a field of coordinates x whose network depends on parameters p.

    A ParameterNet reads p (time, a Reynolds number, ..) and writes all weights of a ShapeNet that reads
    x. Use it for smooth fields on any meshes, also different ones for each p: no mesh is built in. For
    fields with fine detail use `MultiScaleNIF`; a U-Net is simpler where everything lies on one grid.

    ShapeNet: `u = act(x W + b)`, then `shape_depth` times `u = u + act(u W + b)`, then linear.
    ParameterNet: the same with its own widths, down to `latent_dim` numbers and from there linearly to
    the weights. So `W(z) = B + sum_k z_k A_k`, and no point ever gets a weight vector of its own.

    Args:
        parameter_dim: Number of parameters.
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        shape_width: Width of the ShapeNet.
        shape_depth: Number of its hidden layers.
        parameter_width: Width of the ParameterNet.
        parameter_depth: Number of its hidden layers.
        latent_dim: Length of the latent vector that all weights are linear in.
        act: "swish", "tanh", ..., or a callable without arguments that makes a module; of both networks.
        parameter_shortcut: Whether hidden layers of the ParameterNet add to what comes in.
        shape_nodes: Units of the nodes of each layer of the ShapeNet, all of them if None: what
            `compact` leaves of it.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`

    Raises:
        ValueError: If a count is below 1, or p and x do not fit.

    Source: Pan, Brunton and Kutz 2023, JMLR 24 (arXiv 2204.03216), section 2.

    Examples:
        >>> model = NIF(parameter_dim=1, coordinate_dim=2)
        >>> model(torch.zeros(100, 1), torch.rand(100, 2)).shape
        torch.Size([100, 1])
        >>> model.forward_grid(torch.zeros(7, 1), torch.rand(100, 2)).shape
        torch.Size([7, 100, 1])
        >>> model.at(torch.zeros(1))(torch.rand(5, 5, 2)).shape
        torch.Size([5, 5, 1])
    """

    @checked
    def __init__(
        self,
        parameter_dim: int,
        coordinate_dim: int,
        out_channels: int = 1,
        *,
        shape_width: int = 30,
        shape_depth: int = 2,
        parameter_width: int = 30,
        parameter_depth: int = 2,
        latent_dim: int = 1,
        act: Act | str = "swish",
        parameter_shortcut: bool = True,
        shape_nodes: Nodes = None,
    ) -> None:
        super().__init__()
        self._keep(
            parameter_dim=parameter_dim,
            coordinate_dim=coordinate_dim,
            out_channels=out_channels,
            shape_width=shape_width,
            shape_depth=shape_depth,
            parameter_width=parameter_width,
            parameter_depth=parameter_depth,
            latent_dim=latent_dim,
            act=act,
            parameter_shortcut=parameter_shortcut,
            shape_nodes=shape_nodes,
        )
        nodes = all_nodes(shape_nodes, 1 + shape_depth, shape_width)
        self._write(
            ParameterNet(
                parameter_dim,
                parameter_width,
                parameter_depth,
                latent_dim,
                act,
                shortcut=parameter_shortcut,
            ),
            Shape(coordinate_dim, out_channels, nodes, "shortcut", activation(act)),
            latent_dim,
        )
        truncated_normal(self.last)


class MultiScaleNIF(WrittenField):
    """Neural implicit flow with a ShapeNet of sine layers, for fields with detail at many scales.

    Sine layers `sin(omega_0 (u W) + b)` follow high frequencies that smooth activations miss. In a
    residual block `h = sin(omega_0 (u W1) + b1)` and `u = 0.5 (u + sin(omega_0 (h W2) + b2))`.

    Args:
        parameter_dim: Number of parameters.
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        shape_width: Width of the ShapeNet.
        shape_depth: Number of its hidden layers, or residual blocks.
        parameter_width: Width of the ParameterNet.
        parameter_depth: Number of its hidden layers, or residual blocks.
        latent_dim: Length of the latent vector that all weights are linear in.
        parameter_shortcut: Whether hidden layers of the ParameterNet add to what comes in; sine layers
            and residual blocks do not ask.
        omega_0: Factor of the ShapeNet's sine layers: the highest frequency it starts with.
        residual_blocks: Whether the ShapeNet has residual blocks of two layers.
        weight_init_factor: How strongly weights depend on the latent vector at first.
        parameter_act: Activation of the ParameterNet: "swish", "sine", ..., or what makes one.
        parameter_residual_blocks: Whether the ParameterNet has residual blocks; without sine they are
            `h = act(h + (act(h W1 + b1) W2 + b2))`.
        parameter_omega_0: Factor of the ParameterNet's sine layers.
        shape_nodes: Units of the nodes of each layer of the ShapeNet, all of them if None: what
            `compact` leaves of it.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`

    Raises:
        ValueError: If a count is below 1, or p and x do not fit.

    Source: Pan, Brunton and Kutz 2023, JMLR 24, section 2; Sitzmann et al. 2020 (SIREN).

    Examples:
        >>> model = MultiScaleNIF(1, 1, shape_width=16, latent_dim=3, residual_blocks=True)
        >>> model.forward_grid(torch.zeros(2, 1), torch.rand(2, 50, 1)).shape
        torch.Size([2, 50, 1])
    """

    @checked
    def __init__(
        self,
        parameter_dim: int,
        coordinate_dim: int,
        out_channels: int = 1,
        *,
        shape_width: int = 30,
        shape_depth: int = 2,
        parameter_width: int = 30,
        parameter_depth: int = 2,
        latent_dim: int = 1,
        parameter_shortcut: bool = True,
        omega_0: float = 30.0,
        residual_blocks: bool = False,
        weight_init_factor: float = 0.01,
        parameter_act: Act | str = "swish",
        parameter_residual_blocks: bool = False,
        parameter_omega_0: float = 30.0,
        shape_nodes: Nodes = None,
    ) -> None:
        super().__init__()
        self._keep(
            parameter_dim=parameter_dim,
            coordinate_dim=coordinate_dim,
            out_channels=out_channels,
            shape_width=shape_width,
            shape_depth=shape_depth,
            parameter_width=parameter_width,
            parameter_depth=parameter_depth,
            latent_dim=latent_dim,
            parameter_shortcut=parameter_shortcut,
            omega_0=omega_0,
            residual_blocks=residual_blocks,
            weight_init_factor=weight_init_factor,
            parameter_act=parameter_act,
            parameter_residual_blocks=parameter_residual_blocks,
            parameter_omega_0=parameter_omega_0,
            shape_nodes=shape_nodes,
        )
        num_layers = 1 + (2 if residual_blocks else 1) * shape_depth
        nodes = all_nodes(shape_nodes, num_layers, shape_width)
        kind: Kind = "blocks" if residual_blocks else "chain"
        self._write(
            ParameterNet(
                parameter_dim,
                parameter_width,
                parameter_depth,
                latent_dim,
                parameter_act,
                shortcut=parameter_shortcut,
                residual_blocks=parameter_residual_blocks,
                omega=parameter_omega_0,
                act_name="parameter_act",
            ),
            Shape(coordinate_dim, out_channels, nodes, kind, Sine(), omega_0),
            latent_dim,
        )
        bound = weight_init_factor * math.sqrt(6 / latent_dim)
        nn.init.uniform_(self.last.weight, -bound, bound)
        with torch.no_grad():
            self.last.bias.copy_(siren_weights(self.shape))


def all_nodes(nodes: Nodes, num_layers: int, width: int) -> list[list[int]]:
    """The nodes as given, or those of a whole network."""
    if nodes is None:
        return [list(range(width))] * num_layers
    kept = [list(units) for units in nodes]
    if len(kept) != num_layers or any(
        not units or len(set(units)) < len(units) or min(units) < 0 or max(units) >= width
        for units in kept
    ):
        raise ValueError(
            f"shape_nodes must name one or more units below {width}, each once, for each of "
            f"{num_layers} layers, got {nodes}"
        )
    return kept


def with_one(z: Tensor) -> Tensor:
    """1 and the latent vector: what weights are linear in."""
    return torch.cat([z.new_ones(len(z), 1), z], dim=1)
