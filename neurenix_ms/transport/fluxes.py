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
        faces = through_open_faces(fluxes.split(1, dim=1), self.boundaries, mask)
        if self.nonnegative:
            faces = with_limited_outflow(faces, mass)
        mass = after_inflow(mass, faces)
        return mass if cell_area is None else mass / cell_area


def check_density(density: Tensor, mask: Tensor | None) -> None:
    """Raise unless a density has one channel, and the mask can be broadcast to it."""
    if mask is not None:
        check_fit("mask", mask, density)
    if density.shape[1] != 1:
        raise ValueError(f"density must have 1 channel, got shape {tuple(density.shape)}")


def through_open_faces(
    fluxes: Sequence[Tensor], boundaries: Sequence[Boundary], mask: Tensor | None
) -> list[Tensor]:
    """Set the fluxes of every axis through walls and through faces of closed cells to 0."""
    kept = []
    for dim, (flux, boundary) in enumerate(zip(fluxes, boundaries, strict=True), start=2):
        if mask is not None:
            sea = mask.bool().expand_as(flux)
            flux = torch.where(sea & sea.roll(-1, dim), flux, 0)
        if boundary == "wall":
            inner = flux.narrow(dim, 0, flux.shape[dim] - 1)
            flux = torch.cat([inner, torch.zeros_like(flux.narrow(dim, 0, 1))], dim)
        kept.append(flux)
    return kept


def after_inflow(mass: Tensor, fluxes: Sequence[Tensor]) -> Tensor:
    """Return the mass of every cell after the fluxes through its lower and its upper faces.

    Walls are closed, so the flux through the last face of an axis is also that through the first.
    """
    total = None  # a new tensor, which is written to
    for dim, flux in enumerate(fluxes, start=2):
        entering = flux.roll(1, dim)
        total = mass + entering if total is None else total.add_(entering)
        total = total.sub_(flux)
    return mass if total is None else total


def with_limited_outflow(fluxes: Sequence[Tensor], mass: Tensor) -> list[Tensor]:
    """Scale the fluxes out of a cell down where together they exceed its mass."""
    out = None
    for dim, flux in enumerate(fluxes, start=2):
        downwards = flux.neg().relu().roll(1, dim)
        out = downwards if out is None else out.add_(downwards)
        out = out.add_(flux.relu())
    assert out is not None
    info = torch.finfo(mass.dtype)
    least = 1 - 8 * info.eps  # so that rounding leaves nothing negative
    share = (least * mass.relu() / out.clamp(min=info.tiny)).clamp(max=1)
    return [
        flux * torch.where(flux > 0, share, share.roll(-1, dim))
        for dim, flux in enumerate(fluxes, start=2)
    ]
