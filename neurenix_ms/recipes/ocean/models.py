"""Density and currents in, the density six hours later out: U-Nets, and two ways without any."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms.conservation import conserve_mass, rollout
from neurenix_ms.datasets.currents import LENGTH, RELEASE
from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.layers.blocks import BlockKind

PATCH = 1 / (math.pi * RELEASE**2)  # 1 / km2, density of the patch when it is let go
FEATURES = (8, 16, 32)


class DriftUNet(nn.Module):
    """The next density of a density and two velocities, on the torus.

    Convolutions wrap around and upsampling is by transposed ones, so that a map moved around the torus
    by a multiple of 8 cells gives the result moved as far. Nothing is normalized: a batch norm
    would tell full maps from empty ones.

    Args:
        block: "double" or "single", the convolutions of a block.
        conserve: Give every prediction the mass of its input, in training as well.
        residual: Predict the change; the density that is there is added.
        features: Widths, fine to coarse.

    Shape:
        `(B, 3, *S)`: density in units of `PATCH`, velocities in km/h -> `(B, 1, *S)`
    """

    def __init__(
        self,
        block: BlockKind = "double",
        *,
        conserve: bool = False,
        residual: bool = False,
        features: tuple[int, ...] = FEATURES,
    ) -> None:
        super().__init__()
        self.conserve = conserve
        self.unet = UNet(
            3,
            1,
            features,
            block=block,
            bilinear=False,
            norm=None,
            padding_mode="circular",
            residual_channel=0 if residual else None,
            remember=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.unet(x)
        return conserve_mass(y, x[:, :1]) if self.conserve else y


class Unrolled(nn.Module):
    """A surrogate over several steps at once: fed its own predictions, and trained through them.

    Args:
        model: One step.

    Shape:
        `(B, 1 + 2T, *S)`: the density and the velocities of T steps -> `(B, T, *S)`
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        velocity = x[:, 1:].unflatten(1, (-1, 2))
        return rollout(self.model, x[:, :1], velocity, velocity.shape[1])


def stay(x: Tensor) -> Tensor:
    """Persistence: what is there stays there."""
    return x[:, :1]


def carry(x: Tensor, substeps: int = 6) -> Tensor:
    """Semi-Lagrangian advection of a density: look up where it came from, and how it was squeezed.

    Places are followed back for six hours by the midpoint rule, in velocities interpolated linearly; the
    density there is interpolated by cubics, and grows by the determinant of the gradient of the places.
    Densities that cubics take below 0 become 0.

    Shape:
        `(B, 3, N, N)`: density, velocities in km/h -> `(B, 1, N, N)`
    """
    density, velocity = x[:, :1], x[:, 1:] * x.shape[-1] / LENGTH  # cells per hour
    n, h = x.shape[-1], INTERVAL / substeps
    axis = torch.arange(n, dtype=x.dtype, device=x.device)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    moved = torch.zeros_like(velocity)
    for _ in range(substeps):
        middle = moved - h / 2 * looked_up(velocity, cells + moved, "bilinear")
        moved = moved - h * looked_up(velocity, cells + middle, "bilinear")
    d1, d2 = ((moved.roll(-1, axis) - moved.roll(1, axis)) / 2 for axis in (2, 3))
    squeezed = (1 + d1[:, :1]) * (1 + d2[:, 1:]) - d1[:, 1:] * d2[:, :1]
    return (looked_up(density, cells + moved, "bicubic") * squeezed).clamp(min=0)


def looked_up(x: Tensor, places: Tensor, mode: str) -> Tensor:
    """Values of a periodic map between its cells.

    Shape:
        `(B, C, N, N)` and places `(B, 2, N, N)`, counted in cells -> `(B, C, N, N)`
    """
    n, rim = x.shape[-1], 2
    padded = F.pad(x, [rim] * 4, mode="circular")
    inside = places % n + rim
    grid = 2 * inside / (n + 2 * rim - 1) - 1
    return F.grid_sample(padded, grid.flip(1).movedim(1, -1), mode, align_corners=True)
