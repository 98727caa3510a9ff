"""Recurrent baselines: what they remember, learn, solve, and refuse."""

import copy

import pytest
import torch

from neurenix_ms.files import load, save
from neurenix_ms.timestepping import (
    ClockworkRNN,
    EchoStateNetwork,
    LSTMForecaster,
    fit_sequences,
)

MODELS = {
    "lstm": lambda: LSTMForecaster(2, 12),
    "clockwork": lambda: ClockworkRNN(2, 12),
    "echo": lambda: EchoStateNetwork(2, 30),
}
EVERY = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def waves(num_samples=6, rows=120):
    t = 0.2 * torch.arange(rows) + 6 * torch.rand(num_samples, 1)
    return torch.stack([t.sin(), t.cos()], dim=-1)


@EVERY
def test_a_forecast_is_the_network_told_its_own_predictions(build):
    model = build().double()
    history = torch.randn(3, 7, 2, dtype=torch.float64)
    states = model.forecast(history, 5)
    told = torch.cat([history, states], dim=1)
    torch.testing.assert_close(model(told)[:, 6:-1], states)


@EVERY
def test_the_contract_of_every_module(build, tmp_path):
    model = build()
    x = torch.randn(3, 9, 2)
    expected = model(x)
    save(model, tmp_path / "model.nx")
    torch.testing.assert_close(load(tmp_path / "model.nx")(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(model(x[:1]), expected[:1])
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_groups_tick_at_their_periods_and_hear_only_slower_ones():
    model = ClockworkRNN(1, 6, num_groups=3, base=2)
    hidden, _ = model.follow(torch.randn(1, 9, 1))
    changed = [(hidden[0, t] != hidden[0, t - 1]).view(3, 2).any(1).tolist() for t in range(1, 9)]
    assert [c[0] for c in changed] == [True] * 8
    assert [c[1] for c in changed] == [False, True] * 4
    assert [c[2] for c in changed] == [False, False, False, True] * 2
    assert model.slower[4].tolist() == [0, 0, 0, 0, 1, 1]
    assert model.slower[0].tolist() == [1] * 6


def test_the_reservoir_has_its_radius_and_forgets_its_start():
    model = EchoStateNetwork(2, 60, spectral_radius=0.7)
    assert torch.linalg.eigvals(model.inner).abs().max().item() == pytest.approx(0.7, abs=1e-4)
    x = torch.randn(1, 200, 2)
    whole, _ = model.follow(x)
    part, _ = model.follow(x[:, 100:])
    torch.testing.assert_close(whole[:, -1], part[:, -1])
    assert {name for name, p in model.named_parameters()} == {"readout.weight", "readout.bias"}


def test_an_echo_state_network_goes_on_with_waves():
    data = waves()
    model = EchoStateNetwork(2, 100, ridge=1e-8).fit(data)
    new = waves(2, 90)
    error = (model.forecast(new[:, :60], 30) - new[:, 60:]).abs().max()
    assert error < 0.05


@pytest.mark.parametrize("build", [MODELS["lstm"], MODELS["clockwork"]])
def test_training_reduces_the_error(build):
    data, new = waves(), waves(3, 60)

    def error(model):
        with torch.no_grad():
            return (model(new[:, :-1]) - new[:, 1:]).square().mean()

    model = build()
    before = error(model)
    fit_sequences(
        model,
        data[:4],
        validation=data[4:],
        length=20,
        num_iterations=60,
        learning_rate=1e-2,
        progress=False,
    )
    assert error(model) < 0.1 * before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LSTMForecaster(0), "num_features must be at least 1, got 0"),
        (lambda: ClockworkRNN(1, 10, 4), "a multiple of num_groups = 4, got 10"),
        (lambda: EchoStateNetwork(1, 4, 0.0), r"must be positive, got 0\.0 and 1e-06"),
        (
            lambda: LSTMForecaster(2)(torch.zeros(3, 5, 4)),
            r"a sequence must be \(B, T, 2\), got shape \(3, 5, 4\)",
        ),
        (
            lambda: ClockworkRNN(2).forecast(torch.zeros(3, 0, 2), 4),
            r"a sequence must be \(B, T, 2\), got shape \(3, 0, 2\)",
        ),
        (
            lambda: LSTMForecaster(2).forecast(torch.zeros(3, 5, 2), 0),
            "num_steps must be at least 1, got 0",
        ),
        (
            lambda: EchoStateNetwork(2, 5).fit(torch.zeros(3, 21, 2)),
            r"more than washout \+ 1 = 21 states, got shape \(3, 21, 2\)",
        ),
        (
            lambda: fit_sequences(
                LSTMForecaster(2), torch.zeros(3, 50, 2), validation=torch.zeros(3, 60, 2)
            ),
            r"sequences must be .* more than length = 50 states, got shape \(3, 50, 2\)",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
