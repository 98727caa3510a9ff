"""Coupled forecasts and training compared with a plain implementation of the published method."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.paired import assert_equal, measure_step, only_when_timing
from benchmarks.plain_timestepping import (
    PlainMultirate,
    PlainTraining,
    Residual,
    forecast,
    plain_network,
)
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import (
    AdaptiveTimeStepper,
    FourierLatents,
    HierarchicalTimeStepper,
    MultirateStepper,
    StrideErrors,
    TimeStepper,
)
from neurenix_ms.timestepping.banks import make_bank, stacking_is_faster
from neurenix_ms.timestepping.run import TrainingRun, WindowLoss
from neurenix_ms.timestepping.windows import WindowSource

STRIDES = [2**i for i in range(11)]
WIDTH = 128


def hierarchy() -> HierarchicalTimeStepper:
    model = HierarchicalTimeStepper([TimeStepper(MLP(2, 2, [WIDTH] * 3), s) for s in STRIDES])
    with torch.no_grad():
        for parameter in model.parameters():  # small increments, so that the forecast stays bounded
            parameter.mul_(0.3)
    return model


def rollouts(model: HierarchicalTimeStepper, x0: torch.Tensor, num_steps: int) -> dict:
    """Return both forecasts as calls without arguments, with the same weights."""
    plain = [Residual(s.network, s.step_size) for s in model.steppers]
    return {
        "plain": lambda: forecast(plain, x0, num_steps),
        "ours": torch.no_grad()(lambda: model.forecast(x0, num_steps)),
    }


@pytest.mark.headline
@pytest.mark.benchmark(group="timestepping/rollout")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("num_steps", [1024, 5120])
def test_rollout(num_steps, variant, measure, request):
    if num_steps > 1024:
        only_when_timing(request)
    model, x0 = hierarchy(), torch.randn(100, 2)
    ways = rollouts(model, x0, num_steps)
    assert_equal(ways["ours"](), ways["plain"]())
    measure_step(measure, ways, variant, x0, model, rounds=3, resident=True)


def steps(batch_size: int, horizon: int = 5) -> dict:
    """Return training steps of all strides as calls without arguments: the plain one and two of ours."""
    rows = torch.randn(20, STRIDES[-1] * horizon + 1, 2)
    source = WindowSource(rows, STRIDES, horizon, "all")
    windows = source.spread(batch_size)
    networks = [MLP(2, 2, [WIDTH] * 3) for _ in STRIDES]
    loss = WindowLoss(torch.zeros(2), torch.ones(2), torch.ones(11, 2), source.weights)
    settings = {
        "learning_rate": 1e-3,
        "num_iterations": 10**9,
        "schedule": None,
        "seed": 0,
        "step_sizes": STRIDES,
    }
    plain = PlainTraining([plain_network(copy.deepcopy(n)) for n in networks], horizon)
    runs = {
        name: TrainingRun(make_bank(copy.deepcopy(networks), stacked), settings, stacked)
        for name, stacked in (("one by one", False), ("stacked", True))
    }

    def trial(bank):
        loss(bank, windows).sum().backward()

    chosen = "stacked" if stacking_is_faster(networks, trial) else "one by one"
    ways = {name: (lambda run=run: run._step(loss, windows)) for name, run in runs.items()}
    return {"plain": lambda: plain.step(windows), **ways, "ours": ways[chosen]}


@pytest.mark.benchmark(group="timestepping/train-step")
@pytest.mark.parametrize("variant", ["plain", "one by one", "stacked"])
@pytest.mark.parametrize("batch_size", [32, 320])
def test_train_step(batch_size, variant, measure, request):
    if batch_size > 32:
        only_when_timing(request)
    ways = steps(batch_size)
    against = None if variant == "plain" else ways["plain"]
    measure(ways[variant], batch_size * len(STRIDES), rounds=5, against=against)


def adaptive_forecasts(num_samples: int, num_steps: int) -> dict:
    """Return an adaptive forecast of a batch, and of its trajectories one by one, as calls."""
    steppers = list(hierarchy().only([1, 4, 16]).steppers)
    errors = StrideErrors(MLP(2, 6, [16]), [0.0, 0.0], [1.0, 1.0])
    model = AdaptiveTimeStepper(steppers, errors, tolerance=1.0)
    x0 = torch.randn(num_samples, 2)
    return {
        "one by one": torch.no_grad()(
            lambda: torch.cat([model.forecast(x, num_steps) for x in x0.split(1)])
        ),
        "ours": torch.no_grad()(lambda: model.forecast(x0, num_steps)),
    }


@pytest.mark.benchmark(group="timestepping/adaptive")
@pytest.mark.parametrize("variant", ["one by one", "ours"])
def test_adaptive_rollout(variant, measure):
    ways = adaptive_forecasts(20, 256)
    assert_equal(ways["ours"](), ways["one by one"]())
    measure(
        ways[variant], 20, rounds=3, against=None if variant == "one by one" else ways["one by one"]
    )


def multirate() -> MultirateStepper:
    """Return a stepper of fields on 64 points with three levels and random weights."""
    predictor = nn.Sequential(
        nn.Conv1d(4, 32, 5, padding=2, padding_mode="circular"),
        nn.GELU(),
        nn.Conv1d(32, 1, 5, padding=2, padding_mode="circular"),
    )
    latents = FourierLatents(1, [64], [12, 6, 3])
    model = MultirateStepper(predictor, latents, [1, 2, 4], hidden_size=32, change_scale=0.1)
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.benchmark(group="timestepping/multirate")
@pytest.mark.parametrize("variant", ["plain", "ours"])
def test_multirate_rollout(variant, measure):
    model, x0 = multirate(), torch.randn(16, 1, 64)
    plain = PlainMultirate(model)
    ways = {
        "plain": lambda: plain.forecast(x0, 64),
        "ours": torch.no_grad()(lambda: model.forecast(x0, 64)),
    }
    assert_equal(ways["ours"](), ways["plain"]())
    measure_step(measure, ways, variant, x0, model, rounds=3)
