"""Advection of a density by a flow, as a differentiable module without parameters."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_number, check_tensor
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_positive, check_rank, choose
from neurenix_ms.conservation import conserve_mass
from neurenix_ms.transport import flux_form, semi_lagrangian
from neurenix_ms.transport.fluxes import check_density
from neurenix_ms.transport.grid import Boundary, boundaries_of

Scheme = Literal["semi_lagrangian", "flux"]
MOST_POINTS = 8


class Advection(Configured, nn.Module):
    """Move a density with a flow for one time step, and conserve its mass.

    Use it alone as a numerical forecast, or before a network that corrects it: a network has to learn
    only what the scheme misses. It has no parameters, and gradients flow to density and velocity.

    * "semi_lagrangian" follows the flow back from points of every cell, and integrates the spline that
      has the given cell averages. Steps may be long: `substeps` sets the accuracy of the paths only.
      Negative values are set to 0, and `conserve_mass` restores the total mass.
    * "flux" adds up fluxes through the faces of cells, so mass is conserved locally, and a non-negative
      density stays non-negative. The flow may cross one cell in a substep at most. It smooths more.

    Args:
        spatial_dims: Number of spatial axes.
        duration: Duration of the step.
        spacing: Edge of a cell, one number or one per axis, in the unit of length of the velocity.
        scheme: "semi_lagrangian" or "flux".
        boundary: "periodic" or "wall", one or one per axis. Nothing crosses a wall.
        substeps: Steps of the Runge-Kutta scheme in time.
        points: Gauss points per axis and cell, for "semi_lagrangian". With one point, the density at the
            center of a cell is taken as its average.

    The arguments of a call are the density (mass per area), the velocity at the start of the step,
    optionally that at its end (by default the same), a mask of the cells that are open (true, or not 0;
    others are land), and the edges of every cell along all axes, `cell_sizes`, in place of `spacing`. On
    cells of unequal size the step is accurate if their sizes vary smoothly.

    Shape:
        density `(B, 1, *S)`, velocities `(B, spatial_dims, *S)` in units of length per time along every
        axis, mask broadcastable to the density, cell sizes `(spatial_dims, *S)` -> `(B, 1, *S)`

    Raises:
        ValueError: If an argument is out of range or unknown, a shape does not fit, or with "flux" the
            flow crosses more than one cell in a substep.

    Source: "semi_lagrangian" integrates over departure cells as Nair and Machenhauer 2002, Mon. Weather
    Rev. 130, 649, by Gauss points in place of polygons; "flux" has the reconstruction of Shu 1998,
    ICASE 97-65, equation 2.10 of order five with linear weights, and the limit of Zalesak 1979.

    Examples:
        >>> import torch
        >>> from neurenix_ms.transport import Advection
        >>> step = Advection(1, duration=2.0, spacing=0.5)
        >>> density, velocity = torch.zeros(1, 1, 8), torch.full((1, 1, 8), 0.5)
        >>> density[..., 3] = 1.0
        >>> step(density, velocity).argmax().item()
        5
    """

    @checked
    def __init__(
        self,
        spatial_dims: SpatialDims = 2,
        *,
        duration: float = 1.0,
        spacing: float | Sequence[float] = 1.0,
        scheme: Scheme = "semi_lagrangian",
        boundary: Boundary | Sequence[Boundary] = "periodic",
        substeps: int = 6,
        points: int = 3,
    ) -> None:
        super().__init__()
        choose(dict.fromkeys(("semi_lagrangian", "flux")), scheme, "scheme")
        check_number("duration", duration, above=0)
        check_positive(substeps=substeps)
        check_integer("points", points, 1, MOST_POINTS)
        self.boundaries = boundaries_of(boundary, spatial_dims)
        self.spacings = _spacings(spacing, spatial_dims)
        self.gauss_points = semi_lagrangian.gauss_points(points, spatial_dims)

    def forward(
        self,
        density: Tensor,
        velocity: Tensor,
        velocity_end: Tensor | None = None,
        mask: Tensor | None = None,
        cell_sizes: Tensor | None = None,
    ) -> Tensor:
        check_rank(density, self.spatial_dims)
        check_density(density, mask)
        start = self._in_cells("velocity", velocity, density, mask, cell_sizes)
        end = start
        if velocity_end is not None:
            end = self._in_cells("velocity_end", velocity_end, density, mask, cell_sizes)
        area = math.prod(self.spacings) if cell_sizes is None else cell_sizes.prod(0)
        density = density if mask is None else torch.where(mask.bool(), density, 0)
        mass = density * area
        if self.scheme == "flux":
            return flux_form.advected(mass, start, end, self.boundaries, mask, self.substeps) / area
        moved = semi_lagrangian.departures_of(start, end, self.boundaries, self.substeps)
        mass_after = semi_lagrangian.remapped(mass, moved, self.boundaries, self.gauss_points)
        return conserve_mass(mass_after, mass, mask) / area

    def _in_cells(
        self,
        name: str,
        velocity: Tensor,
        density: Tensor,
        mask: Tensor | None,
        cell_sizes: Tensor | None,
    ) -> Tensor:
        """Return a velocity in cells per step, 0 on land."""
        wanted = (len(density), self.spatial_dims, *density.shape[2:])
        if check_tensor(name, velocity).shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(velocity.shape)}")
        if cell_sizes is None:
            sizes = velocity.new_tensor(self.spacings).reshape(-1, *(1,) * self.spatial_dims)
        elif cell_sizes.shape == wanted[1:]:
            sizes = cell_sizes
        else:
            raise ValueError(
                f"cell_sizes must have shape {wanted[1:]}, got {tuple(cell_sizes.shape)}"
            )
        cells = velocity * (self.duration / sizes)
        return cells if mask is None else torch.where(mask.bool(), cells, 0)


def _spacings(spacing: float | Sequence[float], spatial_dims: int) -> list[float]:
    """Return the edge of a cell along every axis."""
    each = list(spacing) if isinstance(spacing, Sequence) else [spacing] * spatial_dims
    if len(each) != spatial_dims or not all(0 < edge < math.inf for edge in each):
        raise ValueError(
            f"spacing must be one positive number or {spatial_dims}, one per axis, got {spacing}"
        )
    return each
