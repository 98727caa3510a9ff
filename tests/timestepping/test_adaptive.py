"""Adaptive forecasts: against the definition, one trajectory and one state at a time."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurenix_ms.files import load, save
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import (
    AdaptiveTimeStepper,
    HierarchicalTimeStepper,
    IntegratorStepper,
    StrideErrors,
    TimeStepper,
    fit_adaptive,
)
from neurenix_ms.timestepping.stride_errors import stride_errors


class Known(nn.Module):
    """Errors that depend on the state and grow with the stride."""

    def __init__(self, strides):
        super().__init__()
        self.logarithms = torch.tensor(sorted(strides)).double().log10()

    def forward(self, x):
        level = 2 * torch.sin(3 * x[:, :1])
        return torch.stack([level + 1.5 * self.logarithms, level + 2 * self.logarithms], 1) - 2


def adaptive(strides, tolerance=0.1, interpolation=None):
    torch.manual_seed(0)
    steppers = [TimeStepper(MLP(2, 2, [8], act="tanh"), s) for s in strides]
    return AdaptiveTimeStepper(steppers, Known(strides), tolerance, interpolation).double()


def learned(strides, *tolerances):
    errors = StrideErrors(MLP(2, 2 * len(strides), [8]), [0.0, 0.0], [1.0, 2.0])
    return AdaptiveTimeStepper(list(adaptive(strides).steppers), errors, *tolerances)


def start(batch=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, dtype=torch.float64, generator=generator)


def reference(model, x, num_steps):
    """The definition for one state `(D,)`: the computed states by time."""
    sizes, steppers = model.step_sizes, model.fine_first()
    allowed = model.tolerance if model.interpolation is None else model.interpolation

    def errors(state):
        return (10 ** model.errors(state[None])[0]).tolist()

    known = {0: x}
    while max(known) < num_steps:
        time = max(known)
        at_end = errors(known[time])[0]
        good = [k for k in range(len(sizes)) if at_end[k] <= model.tolerance]
        k = max(good) if good else min(range(len(sizes)), key=lambda k: at_end[k] / sizes[k])
        known[time + sizes[k]] = steppers[k](known[time][None])[0]
    for stepper in steppers[-2::-1]:
        times = sorted(known)
        for time, following in pairwise(times):
            gap = following - time
            over = min(k for k in range(len(sizes)) if sizes[k] >= gap)
            if gap <= stepper.step_size or errors(known[time])[1][over] <= allowed:
                continue
            for t in range(time + stepper.step_size, following, stepper.step_size):
                known[t] = stepper(known[t - stepper.step_size][None])[0]
    return known


@given(
    strides=st.sets(st.integers(1, 20), min_size=1, max_size=4),
    num_steps=st.integers(1, 50),
    tolerance=st.sampled_from([1e-3, 0.1, 1.0, 1e4]),
    interpolation=st.sampled_from([None, 1e-3, 1.0, 1e4]),
)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_it_is_the_definition_for_all_strides_and_tolerances(
    strides, num_steps, tolerance, interpolation
):
    model = adaptive(strides, tolerance, interpolation)
    states, computed = model.forecast(start(), num_steps, return_computed=True)
    for x, ours, rows in zip(start(), states, computed, strict=True):
        known = reference(model, x, num_steps)
        times = sorted(known)
        assert (rows.nonzero()[:, 0] + 1).tolist() == [t for t in times if 1 <= t <= num_steps]
        for t in range(1, num_steps + 1):
            right = min(time for time in times if time >= t)
            left = max(time for time in times if time < right)
            share = (t - left) / (right - left)
            torch.testing.assert_close(ours[t - 1], torch.lerp(known[left], known[right], share))


@torch.no_grad()
def test_tolerances_that_always_take_the_longest_and_refine_give_the_coupled_forecast():
    model = adaptive([1, 2, 8], tolerance=1e9, interpolation=1e-30)
    coupled = HierarchicalTimeStepper(list(model.steppers))
    torch.testing.assert_close(model.forecast(start(), 40), coupled.forecast(start(), 40))


@torch.no_grad()
def test_every_trajectory_has_its_own_strides():
    model = adaptive([1, 3, 9])
    together, computed = model.forecast(start(6), 30, return_computed=True)
    assert len({tuple(row.tolist()) for row in computed}) > 1
    for x, states in zip(start(6).split(1), together.split(1), strict=True):
        torch.testing.assert_close(model.forecast(x, 30), states)


@torch.no_grad()
def test_a_larger_tolerance_takes_fewer_calls():
    models = [adaptive([1, 4, 16], tolerance) for tolerance in (1e-9, 0.3, 1e9)]
    calls = [model.forecast(start(), 64, return_computed=True)[1].sum().item() for model in models]
    assert calls[0] > calls[1] > calls[2] == 4 * 4


@torch.no_grad()
def test_times_between_steps_and_time_0_may_be_asked_for():
    model = adaptive([2, 5])
    states = model.forecast(start(), 10, times=[0, 0.5, 10])
    whole, computed = model.forecast(start(), 10, return_computed=True)
    assert torch.equal(states[:, 0], start())
    torch.testing.assert_close(states[:, 2], whole[:, 9])
    first = computed.int().argmax(dim=1) + 1
    quarter = (0.5 / first).double()[:, None]
    reached = whole[torch.arange(4), first - 1]
    torch.testing.assert_close(states[:, 1], torch.lerp(start(), reached, quarter))


def test_a_forecast_is_differentiable():
    model = adaptive([1, 4])
    x0 = start().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.forecast(x, 12), x0)
    model.forecast(x0, 12).square().sum().backward()
    assert all(p.grad is not None for p in model.steppers.parameters())


def test_states_can_be_fields():
    class Means(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3), keepdim=True).expand(-1, 4, 1, 1).flatten(1)

    steppers = [TimeStepper(nn.Conv2d(2, 2, 3, padding=1), s) for s in (1, 4)]
    model = AdaptiveTimeStepper(steppers, StrideErrors(Means(), [0.0, 0.0], [1.0, 2.0]), 1.0)
    with torch.no_grad():
        assert model.forecast(torch.randn(3, 2, 5, 6), 9).shape == (3, 9, 2, 5, 6)


def test_it_is_saved_with_its_tolerances(tmp_path):
    model = learned([1, 4], 0.2, 0.3).float()
    save(model, tmp_path / "a.nx")
    again = load(tmp_path / "a.nx")
    assert (again.tolerance, again.interpolation, again.step_sizes) == (0.2, 0.3, [1, 4])
    with torch.no_grad():
        torch.testing.assert_close(
            again.forecast(start().float(), 20), model.forecast(start().float(), 20)
        )


def test_a_forecast_that_diverges_warns():
    class Doubled(nn.Module):
        step_size = 1

        def forward(self, x):
            return 1e200 * x

    model = AdaptiveTimeStepper([Doubled()], adaptive([1]).errors, 0.1)
    with pytest.warns(RuntimeWarning, match="the forecast is not finite from step 2 on"):
        model.forecast(torch.ones(1, 2, dtype=torch.float64), 4)


decay = IntegratorStepper(torch.neg, 0.1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: AdaptiveTimeStepper([], nn.Identity(), 0.1),
            "steppers must have at least one stepper, got none",
        ),
        (
            lambda: AdaptiveTimeStepper([decay, decay], nn.Identity(), 0.1),
            r"different strides, got \[1, 1\]",
        ),
        (lambda: adaptive([1], 0.0), "tolerance must be above 0, got 0"),
        (lambda: adaptive([1], 0.1, -1.0), "interpolation must be above 0, got -1"),
        (
            lambda: adaptive([1]).forecast(torch.zeros(3), 4),
            r"x0 must be a batch of states \(B, \*D\), got shape \(3,\)",
        ),
        (
            lambda: AdaptiveTimeStepper([decay], nn.Identity(), 0.1).forecast(start(), 4),
            r"errors must return two numbers per state and stride, \(4, 2, 1\), "
            r"got shape \(4, 2\)",
        ),
        (
            lambda: StrideErrors(nn.Linear(2, 3), [0.0] * 2, [1.0] * 2)(torch.zeros(5, 2)),
            r"network must return two numbers per state and stride, \(B, 2 K\), "
            r"got shape \(5, 3\)",
        ),
        (
            lambda: StrideErrors(nn.Linear(2, 2), [0.0] * 2, [1.0] * 2)(torch.zeros(5, 3)),
            r"states must be \(B, \*D\) with 2 channels, got shape \(5, 3\)",
        ),
        (
            lambda: StrideErrors(nn.Identity(), [0.0], [1.0, 1.0]),
            r"mean and std must be of one length, got \[1, 2\]",
        ),
        (lambda: StrideErrors(nn.Identity(), [0.0], [0.0]), r"std must not hold 0, got \[0.0\]"),
    ],
    ids=range(10),
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def relaxation(num_rows=200):
    """States that decay from different values, with a rate that is their size."""
    t = 0.1 * torch.arange(num_rows)
    return torch.exp(-t)[None, :, None] * torch.tensor([1.0, 0.5, 2.0])[:, None, None]


def test_errors_are_those_of_the_stepper_and_of_the_interpolation():
    rows = relaxation()
    euler = IntegratorStepper(torch.neg, 0.1, 8, "euler")
    unit = torch.tensor([2.0])
    states, logarithms = stride_errors([euler], rows, unit, 50)
    at_end, within = (10 ** logarithms[:, :, 0]).unbind(1)
    exact = states[:, 0] * math.exp(-0.8)
    torch.testing.assert_close(at_end, (states[:, 0] * 0.2 - exact).abs() / 2)
    share = torch.arange(1, 9) / 8
    curve = states * torch.exp(-0.8 * share)
    line = states + share * (exact[:, None] - states)
    torch.testing.assert_close(within, (line - curve).abs().amax(1) / 2, rtol=1e-3, atol=1e-7)


def test_strides_get_longer_where_states_change_less():
    torch.manual_seed(0)
    steppers = [IntegratorStepper(torch.neg, 0.1, stride) for stride in (1, 2, 8)]
    model = fit_adaptive(
        HierarchicalTimeStepper(steppers),
        relaxation(60),
        lambda: MLP(1, 6, [16]),
        tolerance=0.02,
        num_iterations=400,
        progress=False,
    )
    x0 = torch.ones(1, 1)
    states, computed = model.forecast(x0, 48, return_computed=True)
    early, late = computed[0, :16].sum().item(), computed[0, -16:].sum().item()
    assert early > 2 * late
    exact = torch.exp(-0.1 * torch.arange(1, 49))
    unit = relaxation(60).std().item()
    assert (states[0, :, 0] - exact).abs().max() < 0.1 * unit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trajectories": relaxation(8)},
            r"more rows than the largest stride 8, got shape \(3, 8, 1\)",
        ),
        ({"trajectories": relaxation() / 0}, "trajectories must be finite"),
        (
            {"network": lambda: MLP(1, 4, [2])},
            "network must return two numbers for each of 1 strides, got 4 for one state",
        ),
        ({"num_windows": 0}, "num_windows must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must be above 0, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
    ],
    ids=range(6),
)
def test_invalid_training_raises(options, message):
    arguments = {"trajectories": relaxation(), "network": lambda: MLP(1, 2, [2]), "tolerance": 0.1}
    hierarchy = HierarchicalTimeStepper([IntegratorStepper(torch.neg, 0.1, 8)])
    with pytest.raises(ValueError, match=message):
        fit_adaptive(
            hierarchy,
            **arguments | options,
            num_iterations=1,
            progress=False,
            **({} if "num_windows" in options else {"num_windows": 9}),
        )
