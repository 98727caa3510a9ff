"""Models that predict the density six hours later: U-Nets, persistence and advection."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms.conservation import conserve_mass, rollout
from neurenix_ms.datasets.currents import LENGTH, RELEASE
from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.layers.blocks import BlockKind

PATCH = 1 / (math.pi * RELEASE**2)  # 1 / km2, density of the patch at its release
FEATURES = (8, 16, 32)


class DriftUNet(nn.Module):
    """U-Net that predicts the next density from a density and two velocities, on the torus.

    Padding is circular and upsampling is by transposed convolutions, so the network is equivariant to
    shifts around the torus by multiples of 8 cells. It has no normalization, because batch statistics
    would depend on the amount of density in the input.

    Args:
        block: "double" or "single", the convolutions of a block.
        conserve: Scale every prediction to the mass of its input, in training as well.
        residual: Predict the change, to which the current density is added.
        features: Channels, fine to coarse.

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
    """Surrogate rolled out over several steps on its own predictions, to train through all of them.

    Args:
        model: One step.
        num_fields: Channels of a step besides the density, F.

    Shape:
        `(B, 1 + F * T, *S)`: the density and the fields of T steps -> `(B, T, *S)`
    """

    def __init__(self, model: nn.Module, num_fields: int = 2) -> None:
        super().__init__()
        self.model = model
        self.num_fields = num_fields

    def forward(self, x: Tensor) -> Tensor:
        fields = x[:, 1:].unflatten(1, (-1, self.num_fields))
        return rollout(self.model, x[:, :1], fields, fields.shape[1])


def stay(x: Tensor) -> Tensor:
    """Return the current density as the prediction (persistence)."""
    return x[:, :1]


def carry(x: Tensor, substeps: int = 6) -> Tensor:
    """Advect a density by a semi-Lagrangian scheme with the compression of the flow.

    Positions are traced back for six hours by the midpoint rule, with linearly interpolated velocities.
    The density there is interpolated by cubics and multiplied by the determinant of the gradient of
    the positions. Negative densities from cubic interpolation are set to 0.

    Shape:
        `(B, 3, N, N)`: density, velocities in km/h -> `(B, 1, N, N)`
    """
    density, velocity = x[:, :1], x[:, 1:] * x.shape[-1] / LENGTH  # cells per hour
    n, h = x.shape[-1], INTERVAL / substeps
    axis = torch.arange(n, dtype=x.dtype, device=x.device)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    moved = torch.zeros_like(velocity)
    for _ in range(substeps):
        middle = moved - h / 2 * interpolated(velocity, cells + moved, "bilinear")
        moved = moved - h * interpolated(velocity, cells + middle, "bilinear")
    d1, d2 = ((moved.roll(-1, axis) - moved.roll(1, axis)) / 2 for axis in (2, 3))
    squeezed = (1 + d1[:, :1]) * (1 + d2[:, 1:]) - d1[:, 1:] * d2[:, :1]
    return (interpolated(density, cells + moved, "bicubic") * squeezed).clamp(min=0)


def interpolated(x: Tensor, positions: Tensor, mode: str) -> Tensor:
    """Interpolate a periodic field at positions between its cells.

    Shape:
        `(B, C, N, N)` and positions `(B, 2, N, N)`, in cells -> `(B, C, N, N)`
    """
    n, rim = x.shape[-1], 2
    padded = F.pad(x, [rim] * 4, mode="circular")
    inside = positions % n + rim
    grid = 2 * inside / (n + 2 * rim - 1) - 1
    return F.grid_sample(padded, grid.flip(1).movedim(1, -1), mode, align_corners=True)
