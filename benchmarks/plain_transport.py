"""Advection and conservative updates written the plain way, for periodic grids."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def updated(density: Tensor, fluxes: Tensor) -> Tensor:
    """Limit the outflow of every cell to its mass, and add what flows in."""
    axes = range(2, density.ndim)
    per_axis = fluxes.split(1, dim=1)
    out = sum(f.relu() + (-f).relu().roll(1, axis) for axis, f in zip(axes, per_axis, strict=True))
    share = (density / out.clamp(min=1e-30)).clamp(max=1)
    for axis, f in zip(axes, per_axis, strict=True):
        limited = f * torch.where(f > 0, share, share.roll(-1, axis))
        density = density + limited.roll(1, axis) - limited
    return density


def advected(density: Tensor, velocity: Tensor, substeps: int) -> Tensor:
    """Upwind fluxes of fifth order and Runge-Kutta steps of third order."""
    axes = range(2, density.ndim)
    h = 1 / substeps
    faces = []
    for axis, v in zip(axes, velocity.split(1, dim=1), strict=True):
        a, b, c, d = (v.roll(-k, axis) for k in (-1, 0, 1, 2))
        faces.append(h * (9 * (b + c) - (a + d)) / 16)

    def euler(mass: Tensor) -> Tensor:
        fluxes = []
        for axis, v in zip(axes, faces, strict=True):
            a, b, c, d, e, f = (mass.roll(-k, axis) for k in range(-2, 4))
            below = (2 * a - 13 * b + 47 * c + 27 * d - 3 * e) / 60
            above = (2 * f - 13 * e + 47 * d + 27 * c - 3 * b) / 60
            fluxes.append(v * torch.where(v > 0, below, above))
        return updated(mass, torch.cat(fluxes, dim=1))

    for _ in range(substeps):
        first = euler(density)
        second = 3 / 4 * density + 1 / 4 * euler(first)
        density = density / 3 + 2 / 3 * euler(second)
    return density


def sampled(density: Tensor, velocity: Tensor, substeps: int) -> Tensor:
    """Follow the flow back by the midpoint rule, and sample the density with `F.grid_sample`.

    Values are taken at the centers of cells, by bilinear (the flow) and bicubic (the density)
    interpolation. They are clamped at the border, whereas the grid is periodic.
    """
    rows, columns = density.shape[2:]
    cells = torch.stack(
        torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    )

    def at(x: Tensor, moved: Tensor, mode: str) -> Tensor:
        places = (cells + moved).flip(1).movedim(1, -1)
        grid = (2 * places + 1) / places.new_tensor([columns, rows]) - 1
        return F.grid_sample(x, grid, mode, padding_mode="border", align_corners=False)

    moved = torch.zeros_like(velocity)
    for _ in range(substeps):
        middle = moved - at(velocity, moved, "bilinear") / (2 * substeps)
        moved = moved - at(velocity, middle, "bilinear") / substeps
    after = at(density, moved, "bicubic").clamp(min=0)
    return after * (density.sum((2, 3), keepdim=True) / after.sum((2, 3), keepdim=True))


class MassConserving(nn.Module):
    """A network whose output is scaled to the mass of the first channel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x).clamp(min=0)
        axes = tuple(range(2, x.ndim))
        return y * (x[:, :1].sum(axes, keepdim=True) / y.sum(axes, keepdim=True))
