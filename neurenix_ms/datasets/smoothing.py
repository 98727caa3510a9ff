"""Smooth noisy trajectories by local polynomials, with windows chosen by cross-validation."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_tensor

DEGREES = (1, 3, 5)  # an even degree gives the same inside a trajectory as the odd one above it
GROWTH = 1.3  # of one window to the next
NUM_CHOOSING = 50  # trajectories on which windows are compared
SCIPY = "smooth_trajectories needs scipy: pip install 'neurenix_ms[ode]'"


@dataclass(frozen=True)
class SmoothedTrajectories:
    """Trajectories without most of their noise, and how they were smoothed, channel by channel.

    It is the result of `smooth_trajectories`. Check the windows: a window of a few rows means that the
    channel changes nearly as fast as it was sampled, so smoothing removes little of the noise.

    Args:
        states: The smoothed trajectories, of the shape, dtype and device of the noisy ones.
        windows: Rows of the window of every channel.
        degrees: Degree of the polynomial of every channel.
        noise: Estimated standard deviation of the noise of every channel, in the channel's unit.

    Examples:
        >>> times = torch.linspace(-1, 1, 60, dtype=torch.float64)
        >>> found = smooth_trajectories(times[None, :, None])
        >>> found.states.shape, len(found.windows)
        (torch.Size([1, 60, 1]), 1)
    """

    states: Tensor
    windows: list[int]
    degrees: list[int]
    noise: list[float]


@checked
def smooth_trajectories(trajectories: Tensor) -> SmoothedTrajectories:
    """Remove noise from trajectories by fitting a polynomial to a window around every row.

    Use it before a network is trained on measured trajectories: over a short stride, noise can be larger
    than the change of the state. Noise must be independent from row to row. For every channel, window
    and degree are chosen so that a row is predicted best from its neighbors alone. Smooth only the
    inputs of a method, never the truth that it is compared with.

    Args:
        trajectories: Real states at equal time steps. Every channel has one window for all
            trajectories and positions.

    Shape:
        `(N, T, D)` or, for fields, `(N, T, D, *S)`; T is at least 5

    Raises:
        ValueError: If the trajectories have another shape, hold NaN or inf, or are no floating-point
            numbers.
        ImportError: If scipy is missing.

    Source: Savitzky & Golay 1964, "Smoothing and differentiation of data by simplified least squares
    procedures"; the error without a row follows from the residual as in Craven & Wahba 1979,
    "Smoothing noisy data with spline functions", equation 1.9.

    Examples:
        >>> times = torch.linspace(0, 6, 600, dtype=torch.float64)
        >>> truth = torch.stack([times.sin(), times.cos()], dim=-1)[None]
        >>> noisy = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        >>> found = smooth_trajectories(noisy)
        >>> bool((found.states - truth).square().mean() < 0.05 * 0.1**2)
        True
        >>> [round(noise, 2) for noise in found.noise]
        [0.1, 0.1]
    """
    check_tensor("trajectories", trajectories)
    if trajectories.ndim < 3 or trajectories.shape[1] < 5 or 0 in trajectories.shape:
        raise ValueError(
            "trajectories must be (N, T, D) or (N, T, D, *S) with at least 5 rows, got shape "
            f"{tuple(trajectories.shape)}"
        )
    if not trajectories.is_floating_point():
        raise ValueError(f"trajectories must be real numbers, got {trajectories.dtype}")
    if not trajectories.isfinite().all():
        raise ValueError("trajectories must be finite, got NaN or inf")
    try:
        from scipy.signal import savgol_filter
    except ImportError as error:
        raise ImportError(SCIPY) from error
    states = trajectories.detach().double().cpu().numpy()
    smoothed = np.empty_like(states)
    choices = [_chosen(states[:NUM_CHOOSING, :, channel]) for channel in range(states.shape[2])]
    for channel, (window, degree, _) in enumerate(choices):
        smoothed[:, :, channel] = savgol_filter(states[:, :, channel], window, degree, axis=1)
    windows, degrees, noise = (list(values) for values in zip(*choices, strict=True))
    return SmoothedTrajectories(
        torch.from_numpy(smoothed).to(trajectories), windows, degrees, noise
    )


def _chosen(states: np.ndarray) -> tuple[int, int, float]:
    """Return the window and the degree with the smallest error without a row, and the noise."""
    from scipy.signal import savgol_filter

    num_rows = states.shape[1]
    found: list[tuple[float, int, int, float]] = []
    for window in _windows(num_rows):
        for degree in (degree for degree in DEGREES if degree < window - 1):
            residual = states - savgol_filter(states, window, degree, axis=1)
            others = 1 - _own_weights(window, degree, num_rows)[:, None]
            without = np.mean((residual.reshape(len(states), num_rows, -1) / others) ** 2)
            noise = np.mean(residual.reshape(len(states), num_rows, -1) ** 2 / others)
            found.append((float(without), window, degree, math.sqrt(noise)))
    return min(found)[1:]


def _own_weights(window: int, degree: int, num_rows: int) -> np.ndarray:
    """Return the weight of every row in its own estimate.

    The rows of the first and the last half of a window have the polynomial of the first and the last
    window.
    """
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, window), degree)
    weights = (np.linalg.qr(basis)[0] ** 2).sum(1)
    half = window // 2
    middle = np.full(num_rows - 2 * half, weights[half])
    return np.concatenate([weights[:half], middle, weights[half + 1 :]])


def _windows(num_rows: int) -> list[int]:
    """Return odd windows that grow geometrically, up to a third of the rows."""
    windows, width = [5], 5.0
    while (width := width * GROWTH) <= max(5, num_rows // 3):
        window = int(width) // 2 * 2 + 1
        if window > windows[-1] and window <= num_rows:
            windows.append(window)
    return windows
