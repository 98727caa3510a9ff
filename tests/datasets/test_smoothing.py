"""Noisy trajectories are smoothed by the window that predicts left-out rows best."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter

from neurenix_ms.datasets import smooth_trajectories
from neurenix_ms.datasets.smoothing import _own_weights


def waves(num_samples: int = 4, num_rows: int = 400) -> torch.Tensor:
    times = torch.linspace(0, 6, num_rows, dtype=torch.float64)
    phases = torch.arange(num_samples, dtype=torch.float64)[:, None]
    return torch.stack([(times + phases).sin(), 10 * (2 * times + phases).cos()], dim=-1)


def noisy(truth: torch.Tensor, sizes: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return truth + torch.tensor(sizes) * torch.randn(
        truth.shape, generator=generator, dtype=truth.dtype
    )


def test_noise_is_removed_and_measured():
    truth = waves()
    found = smooth_trajectories(noisy(truth, [0.1, 0.002]))
    before, after = (
        (x - truth).square().mean((0, 1)).sqrt() for x in (noisy(truth, [0.1, 0.002]), found.states)
    )
    assert (after < 0.35 * before).all(), (before, after)
    assert found.noise == pytest.approx([0.1, 0.002], rel=0.1)
    assert found.windows[0] > found.windows[1]  # the second channel moves faster


def test_the_states_are_those_of_scipy():
    x = noisy(waves(), [0.1, 0.002])
    found = smooth_trajectories(x)
    for channel, (window, degree) in enumerate(zip(found.windows, found.degrees, strict=True)):
        wanted = savgol_filter(x[:, :, channel].numpy(), window, degree, axis=1)
        np.testing.assert_allclose(found.states[:, :, channel], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "degree"), [(5, 1), (7, 3), (11, 5)])
def test_own_weights_are_the_diagonal_of_the_filter(window, degree):
    rows = np.eye(24)
    wanted = np.diag(savgol_filter(rows, window, degree, axis=0))
    np.testing.assert_allclose(_own_weights(window, degree, 24), wanted, rtol=0, atol=1e-12)


def test_smooth_trajectories_without_noise_stay_as_they_are():
    truth = waves()
    found = smooth_trajectories(truth)
    torch.testing.assert_close(found.states, truth, rtol=0, atol=1e-6)
    assert max(found.noise) < 1e-6


def test_polynomials_are_kept_exactly():
    times = torch.linspace(-1, 1, 60, dtype=torch.float64)
    truth = torch.stack([times**3 - times, 2 * times + 1], dim=-1)[None]
    torch.testing.assert_close(smooth_trajectories(truth).states, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fields_keep_shape_and_dtype(dtype):
    x = waves()[..., None].expand(-1, -1, -1, 3).to(dtype)
    found = smooth_trajectories(x)
    assert found.states.shape == x.shape
    assert found.states.dtype == dtype
    wanted = smooth_trajectories(x[..., 0])
    assert found.windows == wanted.windows
    torch.testing.assert_close(found.states[..., 1], wanted.states)


@pytest.mark.parametrize("num_rows", [5, 6, 7, 16, 17])
def test_short_trajectories(num_rows):
    found = smooth_trajectories(noisy(waves(30, num_rows), [0.1, 0.1]))
    assert found.states.isfinite().all()
    assert max(found.windows) <= num_rows


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8), r"must be \(N, T, D\).* got shape \(3, 8\)"),
        (torch.zeros(3, 4, 2), "at least 5 rows"),
        (torch.zeros(0, 8, 2), r"got shape \(0, 8, 2\)"),
        (torch.zeros(3, 8, 2, dtype=torch.long), "must be real numbers, got torch.int64"),
        (torch.full((3, 8, 2), math.nan), "must be finite"),
    ],
)
def test_invalid_trajectories_raise(x, message):
    with pytest.raises(ValueError, match=message):
        smooth_trajectories(x)
