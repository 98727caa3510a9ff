"""Errors of predicted densities at every step, as plain numbers."""

from typing import Any

from torch import Tensor

from neurenix_ms.conservation import mass_error
from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.recipes.ocean.models import PATCH

CELLS = (-2, -1)


def scores(predicted: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Compute means over samples, one number per step.

    "error" is the norm of the error divided by that of the truth, "scatter" its standard deviation over
    samples; "rmse" is the root mean square error in 1 / km2. "mass" is the error of the mass, which is
    1 in the truth, and "mass off" its absolute value. "peak" and "square" are the largest density and
    the sum of squares, divided by those of the truth, and "least" is the least density.

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
        "least": _listed(predicted.amin((0, *CELLS))),
    }


def noise_of(truth: Tensor, num_particles: int) -> dict[str, Any]:
    """Compute intensity and counting noise of the true densities.

    "peak" and "square" are the largest density and the sum of squares, divided by the initial ones.
    "noise" is the error that a perfect forecast would have: counts of independent particles have a
    variance equal to their mean.

    Shape:
        `(B, T + 1, N, N)`, the start first
    """
    probability = truth / truth.sum(CELLS, keepdim=True)
    noise = (num_particles * probability.square().sum(CELLS)).rsqrt()
    peak, square = truth.amax(CELLS), truth.square().sum(CELLS)
    return {
        "peak": _listed((peak / peak[:, :1]).mean(0)),
        "square": _listed((square / square[:, :1]).mean(0)),
        "noise": _listed(noise.mean(0)),
    }


def _listed(x: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in x.tolist()]
