"""Predicted and true densities in, what is wrong with them at every step out, as plain numbers."""

from typing import Any

from torch import Tensor

from neurenix_ms.conservation import mass_error
from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.recipes.ocean.models import PATCH

CELLS = (-2, -1)


def scores(predicted: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Means over samples, one number per step.

    "error" is the root of the squared error in parts of the square of the truth, "scatter" its
    standard deviation over samples; "rmse" the root mean square error in 1 / km2. "mass" is the mass
    error, that of the truth being 1, and "mass off" its size. "peak" and "square" are the largest
    density and the sum of squares in parts of those of the truth.

    Shape:
        twice `(B, T, N, N)`, in units of `PATCH`
    """
    square = truth.square().sum(CELLS)
    error = ((predicted - truth).square().sum(CELLS) / square).sqrt()
    area = PATCH * (LENGTH / truth.shape[-1]) ** 2
    mass = mass_error(predicted, truth, cell_area=area)
    return {
        "error": _listed(error.mean(0)),
        "scatter": _listed(error.std(0, correction=0)),
        "rmse": _listed((predicted - truth).square().mean((0, *CELLS)).sqrt() * PATCH),
        "mass": _listed(mass.mean(0)),
        "mass off": _listed(mass.abs().mean(0)),
        "peak": _listed((predicted.amax(CELLS) / truth.amax(CELLS)).mean(0)),
        "square": _listed((predicted.square().sum(CELLS) / square).mean(0)),
    }


def noise_of(truth: Tensor, num_particles: int) -> dict[str, Any]:
    """What is known of the truth itself: how peaked it is, and how far counting makes it uncertain.

    "peak" and "square" are the largest density and the sum of squares in parts of those at first.
    "noise" is the error that a perfect forecast would have: counts of independent particles have a
    variance equal to their mean.

    Shape:
        `(B, T + 1, N, N)`, the start first
    """
    share = truth / truth.sum(CELLS, keepdim=True)
    noise = (num_particles * share.square().sum(CELLS)).rsqrt()
    peak, square = truth.amax(CELLS), truth.square().sum(CELLS)
    return {
        "peak": _listed((peak / peak[:, :1]).mean(0)),
        "square": _listed((square / square[:, :1]).mean(0)),
        "noise": _listed(noise.mean(0)),
    }


def _listed(x: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in x.tolist()]
