"""Small dynamical systems: closed forms, conserved quantities, and bad input."""

import pytest
import torch

from neurenix_ms.datasets.dynamics import SYSTEMS, initial_states, simulate
from neurenix_ms.timestepping import IntegratorStepper


@pytest.mark.parametrize("system", SYSTEMS)
def test_trajectories_start_in_the_box_and_follow_the_right_hand_side(system):
    starts = initial_states(system, 3, seed=4)
    assert starts.dtype == torch.float64
    assert torch.equal(starts, initial_states(system, 3, seed=4))
    assert not torch.equal(starts, initial_states(system, 3, seed=5))
    states = simulate(system, starts, 0.01, 20)
    assert states.shape == (3, 21, starts.shape[1])
    torch.testing.assert_close(states[:, 0], starts)
    fine = IntegratorStepper(SYSTEMS[system].rhs, 0.001, 1)
    x = starts
    for _ in range(200):
        x = fine(x)
    torch.testing.assert_close(states[:, -1], x, rtol=1e-7, atol=1e-7)


def test_the_oscillator_turns():
    starts = initial_states("harmonic", 4)
    assert (starts.norm(dim=1) <= 2).all()
    states = simulate("harmonic", starts, torch.pi / 2, 4)
    torch.testing.assert_close(states[:, 4], starts)
    torch.testing.assert_close(states[:, 2], -starts)
    torch.testing.assert_close(states[:, 1], torch.stack([starts[:, 1], -starts[:, 0]], dim=1))


def test_the_hyperbolic_system_has_a_closed_form():
    # y - x^2 / 0.9 decays with rate 1, x with rate 0.05
    starts = initial_states("hyperbolic", 3)
    states = simulate("hyperbolic", starts, 0.1, 200)
    t = 0.1 * torch.arange(201, dtype=torch.float64)
    x = starts[:, :1] * torch.exp(-0.05 * t)
    y = (starts[:, 1:] - starts[:, :1] ** 2 / 0.9) * torch.exp(-t) + x**2 / 0.9
    torch.testing.assert_close(states, torch.stack([x, y], dim=-1), rtol=0, atol=1e-8)


def test_the_hopf_parameter_is_kept_and_sets_the_radius():
    starts = torch.tensor([[0.5, 1.0, 0.3], [-0.2, 1.0, 0.3]], dtype=torch.float64)
    states = simulate("hopf", starts, 0.5, 120)
    assert (states[:, :, 0] == starts[:, :1]).all()
    radius = states[:, -1, 1:].norm(dim=1)
    torch.testing.assert_close(radius[0] ** 2, torch.tensor(0.5, dtype=torch.float64))
    assert radius[1] < 1e-4


def test_the_lorenz_system_starts_on_its_attractor():
    starts = initial_states("lorenz", 4)
    assert (starts[:, 2] > 0).all()
    assert (starts.abs().amax(0) < torch.tensor([21.0, 29.0, 50.0])).all()


def test_states_keep_their_dtype():
    states = simulate("hopf", initial_states("hopf", 2).float(), 0.1, 3)
    assert states.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: initial_states("pendulum", 1), "system must be one of .*'hopf'.*, got 'pendulum'"),
        (lambda: initial_states("hopf", 0), "num_samples must be at least 1, got 0"),
        (
            lambda: simulate("hopf", torch.zeros(2, 2), 0.1, 3),
            r"initial states of 'hopf' must be \(N, 3\), got \(2, 2\)",
        ),
        (lambda: simulate("cubic", torch.zeros(1, 2), 0.0, 3), r"dt must be positive, got 0\.0"),
        (
            lambda: simulate("cubic", torch.zeros(1, 2), 0.1, 0),
            "num_steps must be at least 1, got 0",
        ),
        (
            lambda: simulate("cubic", torch.full((1, 2), torch.nan), 0.1, 3),
            "initial states must be finite, got NaN or inf",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
