"""Neural implicit flow: a network of parameters generates the weights of one of coordinates."""

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


class GeneratedField(ImplicitField):
    """Field with a ShapeNet whose weights the ParameterNet generates, and whose nodes can be pruned.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`
    """

    output_mask: Tensor
    shape: Shape
    last: nn.Linear

    @property
    def node_mask(self) -> Tensor:
        """Return which nodes are active, `(layers, width)`; narrower layers are padded with False."""
        _, biases = self.shape.slices()
        alive = [self.output_mask[b] > 0 for b in biases[:-1]]
        return nn.utils.rnn.pad_sequence(alive, batch_first=True, padding_value=False)

    def table(self) -> Tensor:
        """Return B and A_k of `W(z) = B + sum_k z_k A_k`, masked, `(latent_dim + 1, num_weights)`."""
        weight, bias = weights_of(self.last)
        return torch.cat([bias[None], weight.mT]) * self.output_mask

    def weights(self, p: Tensor) -> Tensor:
        """Generate all weights of the ShapeNet: matrices `(in, out)` row by row, then biases.

        Do not use it for one parameter per point, which would take a row of weights for each.

        Args:
            p: Parameters, `(T, parameter_dim)`.

        Returns:
            `(T, num_weights)`, one row per parameter.
        """
        return with_one(self.latent(p)) @ self.table()

    def _pairs(self, z: Tensor, x: Tensor) -> Tensor:
        return self.shape(x, for_pairs(self.shape, self.table(), with_one(z)))

    def _grid(self, z: Tensor, x: Tensor) -> Tensor:
        return self.shape(x, for_grid(self.shape, with_one(z) @ self.table()))

    def _fixed(self, z: Tensor) -> nn.Module:
        return ShapeNet(self.shape, (with_one(z) @ self.table())[0])

    def _build(self, parameter_net: ParameterNet, shape: Shape, latent_dim: int) -> None:
        self.parameter_net = parameter_net
        self.shape = shape
        self.last = nn.Linear(latent_dim, shape.num_weights)
        self.register_buffer("output_mask", torch.ones(shape.num_weights))


class NIF(GeneratedField):
    """Neural implicit flow: a field of coordinates x whose weights depend on parameters p.

    A ParameterNet takes p (such as time or a Reynolds number) and generates all weights of a ShapeNet,
    which takes x. Use it for smooth fields on any meshes, which may differ for each p. For fields with
    fine detail use `MultiScaleNIF`; if all data lie on one grid, a U-Net is simpler.

    ShapeNet: `u = act(x W + b)`, then `shape_depth` times `u = u + act(u W + b)`, then a linear layer.
    ParameterNet: the same with its own widths, up to a latent vector of length `latent_dim`, and a
    linear layer to the weights. So `W(z) = B + sum_k z_k A_k`, and no separate weight vector is
    computed per point.

    Args:
        parameter_dim: Number of parameters.
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        shape_width: Width of the ShapeNet.
        shape_depth: Number of its hidden layers.
        parameter_width: Width of the ParameterNet.
        parameter_depth: Number of its hidden layers.
        latent_dim: Length of the latent vector that all weights are linear in.
        act: Activation of both networks: "swish", "tanh", ..., or a callable without arguments that
            returns a module.
        parameter_shortcut: Whether hidden layers of the ParameterNet add to their inputs.
        shape_nodes: Units of the nodes of each layer of the ShapeNet, all of them if None; `compact`
            sets it.

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
        self._build(
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


class MultiScaleNIF(GeneratedField):
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
        parameter_shortcut: Whether hidden layers of the ParameterNet add to their inputs; it has no
            effect on sine layers and residual blocks.
        omega_0: Factor of the ShapeNet's sine layers: the highest frequency it starts with.
        residual_blocks: Whether the ShapeNet has residual blocks of two layers.
        weight_init_factor: Scale of the initial dependence of the weights on the latent vector.
        parameter_act: Activation of the ParameterNet: "swish", "sine", ..., or a callable that returns
            a module.
        parameter_residual_blocks: Whether the ParameterNet has residual blocks; without sine they are
            `h = act(h + (act(h W1 + b1) W2 + b2))`.
        parameter_omega_0: Factor of the ParameterNet's sine layers.
        shape_nodes: Units of the nodes of each layer of the ShapeNet, all of them if None; `compact`
            sets it.

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
        self._build(
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
    """Return the given nodes after checking them, or all nodes if None."""
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
    """Prepend 1 to the latent vectors, so that weights are a linear function of the result."""
    return torch.cat([z.new_ones(len(z), 1), z], dim=1)
