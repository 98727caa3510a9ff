"""Steps of six hours: advection, a U-Net, and advection corrected by a U-Net."""

import torch
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms.conservation import conserve_mass
from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.datasets.ocean import INTERVAL
from neurenix_ms.multiscale.decoder import FinalActivation
from neurenix_ms.recipes.ocean.models import PATCH, carry
from neurenix_ms.recipes.ocean.training import Sample
from neurenix_ms.transport import Advection, FluxConservation
from neurenix_ms.transport.advection import Scheme

FIELDS = 5  # channels besides the density: two velocities at the start, two at the end, sea
POINTS = 2  # Gauss points per axis and cell


class DriftAdvection(nn.Module):
    """Advection by currents that change linearly during the step.

    Args:
        size: Cells along each axis of the square.
        scheme: Scheme of `Advection`.
        substeps: Number of its substeps.

    Shape:
        `(B, 1 + FIELDS, N, N)` -> `(B, 1, N, N)`
    """

    def __init__(self, size: int, scheme: Scheme = "semi_lagrangian", substeps: int = 4) -> None:
        super().__init__()
        self.advection = Advection(
            duration=INTERVAL,
            spacing=LENGTH / size,
            scheme=scheme,
            substeps=substeps,
            points=POINTS,
        )

    def forward(self, x: Tensor) -> Tensor:
        density, start, end, sea = x.split((1, 2, 2, 1), dim=1)
        return self.advection(density, start, end, sea)


class DriftNetwork(nn.Module):
    """A U-Net that predicts the next density itself, scaled to the mass of its input.

    Its output is positive: a network whose output is negative everywhere would have no gradient.

    Args:
        features: Channels, fine to coarse.

    Shape:
        `(B, 1 + FIELDS, N, N)` -> `(B, 1, N, N)`
    """

    def __init__(self, features: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = periodic_unet(1 + FIELDS, 1, features, "softplus")

    def forward(self, x: Tensor) -> Tensor:
        return conserve_mass(self.unet(x), x[:, :1], x[:, -1:])


class HybridDrift(nn.Module):
    """Advection, then fluxes between neighboring cells that a U-Net predicts.

    The U-Net takes the advected density and the input. Its last layer starts at zero, so that training
    starts with advection.

    Args:
        size: Cells along each axis of the square.
        features: Channels of the U-Net, fine to coarse.

    Shape:
        `(B, 1 + FIELDS, N, N)` -> `(B, 1, N, N)`
    """

    def __init__(self, size: int, features: tuple[int, ...]) -> None:
        super().__init__()
        self.advect = DriftAdvection(size)
        self.unet = periodic_unet(2 + FIELDS, 2, features)
        for parameter in self.unet.head.parameters():
            nn.init.zeros_(parameter)
        self.update = FluxConservation()

    def forward(self, x: Tensor) -> Tensor:
        advected = self.advect(x)
        fluxes = self.unet(torch.cat([advected, x], dim=1))
        return self.update(advected, fluxes, x[:, -1:])


def images_of(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the densities and the fields of a sample.

    Shape:
        an item of `DriftDensity` -> `(T + 1, N, N)` in units of `PATCH`, and `(T, FIELDS, N, N)`
    """
    velocity = sample["velocity"]
    land = sample.get("land", torch.zeros_like(velocity[0, 0]))
    sea = (1 - land).expand(len(velocity) - 1, 1, *land.shape)
    return sample["density"] / PATCH, torch.cat([velocity[:-1], velocity[1:], sea], dim=1)


def periodic_unet(
    in_channels: int,
    out_channels: int,
    features: tuple[int, ...],
    final_activation: FinalActivation = None,
) -> UNet:
    """Return a U-Net for the torus, without normalization."""
    return UNet(
        in_channels,
        out_channels,
        features,
        up="transposed",
        norm=None,
        act="silu",
        padding_mode="circular",
        final_activation=final_activation,
        remember=False,
    )


def carried(x: Tensor) -> Tensor:
    """Advect point values, the semi-Lagrangian scheme of the recipe `ocean`, and correct the mass.

    Shape:
        `(B, 1 + FIELDS, N, N)` -> `(B, 1, N, N)`
    """
    density, start, end, sea = x.split((1, 2, 2, 1), dim=1)
    moved = carry(torch.cat([density, (start + end) / 2], dim=1))
    return conserve_mass(moved, density, sea)
