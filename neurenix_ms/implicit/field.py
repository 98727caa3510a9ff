"""Base class of implicit fields: checks, chunking and evaluation on pairs, grids and meshes."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import check_number
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive
from neurenix_ms.implicit.parameter_net import ParameterNet

SMALLEST_OMEGA = 1e-30  # initial weights are divided by it and must stay finite


class ImplicitField(Configured, nn.Module):
    """Base class of fields u(p, x); subclasses evaluate pairs and grids, and fix one p.

    Shape:
        p `(N, parameter_dim)`, x `(N, coordinate_dim)` -> `(N, out_channels)`
    """

    parameter_dim: int
    coordinate_dim: int
    out_channels: int
    parameter_net: ParameterNet

    def forward(self, p: Tensor, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
        """Compute the field values of pairs: the first parameters at the first point, and so on.

        Args:
            p: Parameters, `(N, parameter_dim)`.
            x: Points, `(N, coordinate_dim)`.
            chunk_size: Largest number of pairs per call; all of them if None. Without gradients it
                bounds the memory.

        Returns:
            `(N, out_channels)`
        """
        check_rows(p, self.parameter_dim, "p", "parameter_dim")
        check_rows(x, self.coordinate_dim, "x", "coordinate_dim")
        if len(p) != len(x):
            raise ValueError(
                f"p and x must be pairs of equal number, got {len(p)} and {len(x)}; "
                "forward_grid evaluates every parameter at every point"
            )
        if chunk_size is None:
            return self._pairs(self.latent(p), x)
        check_positive(chunk_size=chunk_size)
        chunks = zip(p.split(chunk_size), x.split(chunk_size), strict=True)
        return torch.cat([self._pairs(self.latent(some), points) for some, points in chunks])

    @overload
    def forward_grid(self, p: Tensor, x: Tensor, *, chunk_size: int | None = None) -> Tensor: ...

    @overload
    def forward_grid(
        self, p: Tensor, x: Sequence[Tensor], *, chunk_size: int | None = None
    ) -> list[Tensor]: ...

    def forward_grid(
        self, p: Tensor, x: Tensor | Sequence[Tensor], *, chunk_size: int | None = None
    ) -> Tensor | list[Tensor]:
        """Compute the field values of every parameter at every point.

        The weights are generated once per parameter, not once per point.

        Args:
            p: Parameters, `(T, parameter_dim)`.
            x: Points `(N, coordinate_dim)` that all parameters share, or a separate mesh for each,
                `(T, N, coordinate_dim)`, or a list of T meshes of any lengths.
            chunk_size: Largest number of points per call, over all parameters; all of them if None.

        Returns:
            `(T, N, out_channels)`; for a list of meshes a list of `(N_t, out_channels)`.
        """
        check_rows(p, self.parameter_dim, "p", "parameter_dim")
        if chunk_size is not None:
            check_positive(chunk_size=chunk_size)
        if isinstance(x, Tensor):
            check_mesh(x, len(p), self.coordinate_dim)
            return self._chunked(self.latent(p), x, chunk_size)
        if len(x) != len(p):
            raise ValueError(f"expected a mesh for each of {len(p)} parameters, got {len(x)}")
        for mesh in x:
            check_rows(mesh, self.coordinate_dim, "every mesh", "coordinate_dim")
        latents = self.latent(p).split(1)
        pairs = zip(latents, x, strict=True)
        return [self._chunked(z, mesh, chunk_size)[0] for z, mesh in pairs]

    def latent(self, p: Tensor) -> Tensor:
        """Return the latent vectors of parameters, `(N, parameter_dim)` -> `(N, latent_dim)`."""
        return self.parameter_net(p)

    @torch.no_grad()
    def at(self, p: Tensor) -> nn.Module:
        """Return the field of one parameter vector as a module of coordinates with fixed weights.

        Args:
            p: One parameter vector, `(parameter_dim,)` or `(1, parameter_dim)`.
        """
        if p.numel() != self.parameter_dim or p.ndim > 2:
            raise ValueError(
                f"p must be one vector of {self.parameter_dim} parameters, got shape {tuple(p.shape)}"
            )
        return self._fixed(self.latent(p.reshape(1, -1)))

    def _chunked(self, z: Tensor, x: Tensor, chunk_size: int | None) -> Tensor:
        num_points = x.shape[-2]
        if chunk_size is None or len(z) * num_points <= chunk_size:
            return self._grid(z, x)
        points = min(num_points, chunk_size)
        rows = max(1, chunk_size // max(1, num_points))
        meshes = x.split(rows) if x.ndim == 3 else [x] * -(-len(z) // rows)
        blocks = [
            torch.cat([self._grid(some, part) for part in mesh.split(points, dim=-2)], dim=1)
            for some, mesh in zip(z.split(rows), meshes, strict=True)
        ]
        return torch.cat(blocks)

    def _pairs(self, z: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _grid(self, z: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _fixed(self, z: Tensor) -> nn.Module:
        raise NotImplementedError

    def _keep(self, **arguments: Any) -> None:
        """Store every constructor argument under its own name, after checking counts and factors."""
        counts = ("dim", "width", "channels", "depth")
        check_positive(**{k: v for k, v in arguments.items() if k.split("_")[-1] in counts})
        for name, value in arguments.items():
            if name.endswith("omega_0"):
                check_number(name, value, minimum=SMALLEST_OMEGA)
            elif name == "weight_init_factor":
                check_number(name, value, minimum=0, maximum=1 / SMALLEST_OMEGA)
            setattr(self, name, value)


def check_rows(rows: Tensor, length: int, name: str, argument: str) -> None:
    """Raise unless `rows` has shape `(N, length)`."""
    if rows.ndim != 2 or rows.shape[1] != length:
        raise ValueError(
            f"{name} must have shape (N, {length}) for {argument}={length}, "
            f"got shape {tuple(rows.shape)}"
        )


def check_mesh(x: Tensor, num_parameters: int, coordinate_dim: int) -> None:
    """Raise unless `x` is one mesh for all parameters, or one of equal length for each."""
    if x.ndim not in (2, 3) or x.shape[-1] != coordinate_dim:
        raise ValueError(
            f"x must have shape (N, {coordinate_dim}) or (T, N, {coordinate_dim}), "
            f"got shape {tuple(x.shape)}"
        )
    if x.ndim == 3 and len(x) != num_parameters:
        raise ValueError(
            f"x must hold a mesh for each of {num_parameters} parameters, got {len(x)}; "
            "pass meshes of different lengths as a list"
        )
