"""Implicit field as a learned basis of coordinates with coefficients that depend on parameters."""

import math

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.hooks import is_observed
from neurenix_ms.implicit.dense import weights_of
from neurenix_ms.implicit.field import ImplicitField
from neurenix_ms.implicit.parameter_net import ParameterNet, Sine, truncated_normal
from neurenix_ms.implicit.shape_net import Kind, Shape, ShapeNet, siren_weights
from neurenix_ms.layers.naming import Act


class LastLayerNIF(ImplicitField):
    """Neural implicit flow in which only the last layer of the ShapeNet depends on the parameters.

    `u[o] = sum_k phi[o, k](x) coef[k](p) + bias[o]`: a network of sine layers is the basis phi, as in
    proper orthogonal decomposition but on any mesh, and the ParameterNet computes the coefficients.
    Use it if a linear basis is needed, for reduced models and sparse sensors. For traveling
    structures `MultiScaleNIF` needs a far smaller latent vector.

    Args:
        parameter_dim: Number of parameters.
        coordinate_dim: Number of coordinates.
        out_channels: Number of field values.
        shape_width: Width of the ShapeNet.
        shape_depth: Number of its hidden layers, or residual blocks.
        parameter_width: Width of the ParameterNet.
        parameter_depth: Number of its hidden layers, or residual blocks.
        latent_dim: Number of basis functions per field value.
        parameter_shortcut: Whether hidden layers of the ParameterNet add to their inputs.
        omega_0: Factor of the ShapeNet's sine layers.
        residual_blocks: Whether the ShapeNet has residual blocks of two layers.
        weight_init_factor: Scale of the initial dependence of the coefficients on the latent vector.
        parameter_act: Activation of the ParameterNet.
        parameter_residual_blocks: Whether the ParameterNet has residual blocks.
        parameter_omega_0: Factor of the ParameterNet's sine layers.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`

    Raises:
        ValueError: If a count is below 1, or p and x do not fit.

    Source: Pan, Brunton and Kutz 2023, JMLR 24, section 2.

    Examples:
        >>> model = LastLayerNIF(1, 2, latent_dim=5)
        >>> model.basis(torch.rand(100, 2)).shape
        torch.Size([100, 1, 5])
        >>> model.forward_grid(torch.zeros(3, 1), torch.rand(100, 2)).shape
        torch.Size([3, 100, 1])
    """

    weight_init_factor: float

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
        )
        self.parameter_net = ParameterNet(
            parameter_dim,
            parameter_width,
            parameter_depth,
            latent_dim,
            parameter_act,
            shortcut=parameter_shortcut,
            residual_blocks=parameter_residual_blocks,
            omega=parameter_omega_0,
            act_name="parameter_act",
        )
        self.last = nn.Linear(latent_dim, latent_dim)
        nodes = [list(range(shape_width))] * (1 + (2 if residual_blocks else 1) * shape_depth)
        kind: Kind = "blocks" if residual_blocks else "chain"
        self.shape = Shape(coordinate_dim, out_channels * latent_dim, nodes, kind, Sine(), omega_0)
        self.shape_layers = nn.ModuleList(nn.Linear(i, o) for i, o in self.shape.sizes)
        self.out_bias = nn.Parameter(torch.zeros(out_channels))
        self._start()

    def basis(self, x: Tensor) -> Tensor:
        """Evaluate the basis, `(..., coordinate_dim)` -> `(..., out_channels, latent_dim)`."""
        values = self.shape(x.flatten(0, -2), self._linear)
        return values.unflatten(0, x.shape[:-1]).unflatten(-1, (-1, self.last.out_features))

    def coefficients(self, p: Tensor) -> Tensor:
        """Compute the coefficients of the basis, `(N, parameter_dim)` -> `(N, latent_dim)`."""
        return self.last(self.latent(p))

    def _pairs(self, z: Tensor, x: Tensor) -> Tensor:
        return (self.basis(x) * self.last(z)[:, None]).sum(-1) + self.out_bias

    def _grid(self, z: Tensor, x: Tensor) -> Tensor:
        basis, coefficients = self.basis(x), self.last(z)
        if x.ndim == 3:
            return torch.einsum("tnok,tk->tno", basis, coefficients) + self.out_bias
        return torch.einsum("nok,tk->tno", basis, coefficients) + self.out_bias

    def _fixed(self, z: Tensor) -> nn.Module:
        coefficients = self.last(z)[0]
        *dense, basis = [(w.mT, b) for w, b in map(weights_of, self.shape_layers)]
        matrix, bias = (
            part.unflatten(-1, (-1, len(coefficients))) @ coefficients for part in basis
        )
        # the last layer and the sum over the basis are one linear layer
        layers = [*dense, (matrix, bias + self.out_bias)]
        shape = Shape(
            self.coordinate_dim,
            len(self.out_bias),
            self.shape.nodes,
            self.shape.kind,
            self.shape.act,
            self.shape.omega,
        )
        parts = [m.flatten() for m, _ in layers] + [b for _, b in layers]
        return ShapeNet(shape, torch.cat(parts)).to(z.device)

    def _linear(self, layer: int, u: Tensor) -> Tensor:
        dense, factor = self.shape_layers[layer], self.shape.factor(layer)
        if is_observed(dense) or type(dense) is not nn.Linear:  # hooked, sharded or quantized
            return dense(factor * u.mT).mT
        return torch.addmm(dense.bias[:, None], dense.weight, u, alpha=factor)

    @torch.no_grad()
    def _start(self) -> None:
        weights = siren_weights(self.shape)
        matrices, biases = self.shape.slices()
        for dense, m, b in zip(self.shape_layers, matrices, biases, strict=True):
            assert isinstance(dense, nn.Linear)
            dense.weight.copy_(weights[m].view(dense.weight.mT.shape).mT)
            dense.bias.copy_(weights[b])
        truncated_normal(self.last)
        bound = self.weight_init_factor * math.sqrt(6 / self.last.in_features)
        nn.init.uniform_(self.last.weight, -bound, bound)
