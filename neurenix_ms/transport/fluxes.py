"""Fluxes through the faces of cells, which conserve the mass of every region."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_tensor
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_rank
from neurenix_ms.conservation import check_fit
from neurenix_ms.transport.grid import Boundary, boundaries_of


class FluxConservation(Configured, nn.Module):
    """Update a density by the mass that flows through the faces of its cells.

    Use it as the last step of a network that predicts fluxes. What leaves a cell enters its neighbor, so
    the mass of every region changes only by what crosses its border. `conserve_mass`, in contrast,
    corrects the total and may move mass over any distance. No mass flows through walls or into land.
    With `nonnegative`, the outflow of a cell is reduced where it exceeds the mass of the cell.

    Args:
        spatial_dims: Number of spatial axes.
        boundary: "periodic" or "wall", one or one per axis.
        nonnegative: Reduce fluxes so that a density without negative values stays so.

    The arguments of a call are the density, the fluxes, and optionally a mask of the cells that are open
    (true, or not 0) and the area (or volume) of the cells. Flux `i` of a cell is the mass that flows in
    the step through its upper face of axis `i`, positive in the direction of the axis.

    Shape:
        density `(B, 1, *S)`, fluxes `(B, spatial_dims, *S)`; mask and area can be broadcast to the
        density -> `(B, 1, *S)`

    Raises:
        ValueError: If a boundary is unknown, or a shape does not fit.

    Source: the limit on outflow is that of Zalesak 1979, J. Comput. Phys. 31, 335, equations 7 to 13,
    for a lower bound of 0.

    Examples:
        >>> import torch
        >>> from neurenix_ms.transport import FluxConservation
        >>> update = FluxConservation(1)
        >>> update(torch.tensor([[[4.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 5.0, 0.0]]]))
        tensor([[[3.0000, 1.0000, 1.0000]]])
    """

    @checked
    def __init__(
        self,
        spatial_dims: SpatialDims = 2,
        *,
        boundary: Boundary | Sequence[Boundary] = "periodic",
        nonnegative: bool = True,
    ) -> None:
        super().__init__()
        self.boundaries = boundaries_of(boundary, spatial_dims)

    def forward(
        self,
        density: Tensor,
        fluxes: Tensor,
        mask: Tensor | None = None,
        cell_area: Tensor | float | None = None,
    ) -> Tensor:
        check_rank(density, self.spatial_dims)
        check_density(density, mask)
        if isinstance(cell_area, Tensor):
            check_fit("cell_area", cell_area, density)
        wanted = (len(density), self.spatial_dims, *density.shape[2:])
        if check_tensor("fluxes", fluxes).shape != wanted:
            raise ValueError(f"fluxes must have shape {wanted}, got {tuple(fluxes.shape)}")
        mass = density if cell_area is None else density * cell_area
        fluxes = through_open_faces(fluxes, self.boundaries, mask)
        if self.nonnegative:
            fluxes = with_limited_outflow(fluxes, mass)
        mass = mass + inflow(fluxes)
        return mass if cell_area is None else mass / cell_area


def check_density(density: Tensor, mask: Tensor | None) -> None:
    """Raise unless a density has one channel, and the mask can be broadcast to it."""
    if mask is not None:
        check_fit("mask", mask, density)
    if density.shape[1] != 1:
        raise ValueError(f"density must have 1 channel, got shape {tuple(density.shape)}")


def through_open_faces(
    fluxes: Tensor, boundaries: Sequence[Boundary], mask: Tensor | None
) -> Tensor:
    """Set the fluxes through walls and through faces of closed cells to 0."""
    kept = []
    for axis, boundary in enumerate(boundaries):
        dim, flux = 2 + axis, fluxes[:, axis : axis + 1]
        if mask is not None:
            sea = mask.bool().expand_as(flux)
            flux = torch.where(sea & sea.roll(-1, dim), flux, 0)
        if boundary == "wall":
            inner = flux.narrow(dim, 0, flux.shape[dim] - 1)
            flux = torch.cat([inner, torch.zeros_like(flux.narrow(dim, 0, 1))], dim)
        kept.append(flux)
    return torch.cat(kept, dim=1)


def inflow(fluxes: Tensor) -> Tensor:
    """Return what every cell gains: the fluxes through its lower faces minus those through its upper.

    Walls are closed, so the flux through the last face of an axis is also that through the first.
    """
    gains = [f.roll(1, 1 + axis) - f for axis, f in enumerate(fluxes.unbind(1))]
    return sum(gains[1:], start=gains[0]).unsqueeze(1)


def with_limited_outflow(fluxes: Tensor, mass: Tensor) -> Tensor:
    """Scale the fluxes out of a cell down where together they exceed its mass."""
    out = torch.zeros_like(mass)
    for axis in range(fluxes.shape[1]):
        flux = fluxes[:, axis : axis + 1]
        out = out + flux.clamp(min=0) + (-flux).clamp(min=0).roll(1, 2 + axis)
    info = torch.finfo(mass.dtype)
    least = 1 - 8 * info.eps  # so that rounding leaves nothing negative
    share = (least * mass / out.clamp(min=info.tiny)).clamp(0, 1)
    kept = []
    for axis in range(fluxes.shape[1]):
        flux = fluxes[:, axis : axis + 1]
        kept.append(flux * torch.where(flux > 0, share, share.roll(-1, 2 + axis)))
    return torch.cat(kept, dim=1)
