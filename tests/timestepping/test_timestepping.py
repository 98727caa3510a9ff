"""Forecasts of coupled steppers: against the definition written out, closed forms, and bad input."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from neurenix_ms import UNet
from neurenix_ms.files import load, save
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.timestepping import (
    HierarchicalTimeStepper,
    IntegratorStepper,
    StandardizedNetwork,
    TimeStepper,
)


def stepper(step_size, dims=2):
    return TimeStepper(MLP(dims, dims, [8], act="tanh"), step_size).double()


def hierarchy(strides, dims=2):
    return HierarchicalTimeStepper([stepper(s, dims) for s in strides])


def start(batch=3, dims=2):
    return torch.randn(batch, dims, dtype=torch.float64)


def reference(model, x0, num_steps, times=None):
    """The definition, one state at a time: known states by time, and the times that were computed."""
    known = {0: x0}
    reach = num_steps
    steppers = model.coarse_first()
    for step in steppers:
        times_known = sorted(known)
        for time, following in zip(times_known, [*times_known[1:], np.inf], strict=True):
            x = known[time]
            for i in range(1, reach // step.step_size + 1):
                if time + i * step.step_size >= following:
                    break
                x = known[time + i * step.step_size] = step(x)
        reach = step.step_size - 1
    while max(known) < num_steps:
        last = max(known)
        known[last + steppers[-1].step_size] = steppers[-1](known[last])
    order = sorted(known)
    values = torch.stack([known[t] for t in order]).flatten(1).detach().numpy()
    wanted = np.arange(1, num_steps + 1) if times is None else np.asarray(times)
    columns = [np.interp(wanted, order, column) for column in values.T]
    states = torch.from_numpy(np.stack(columns)).reshape(*x0.shape, len(wanted)).movedim(-1, 1)
    return states, [i for i, t in enumerate(wanted) if t in known]


some_strides = st.sets(st.integers(1, 40), min_size=1, max_size=4)


@given(
    strides=some_strides,
    num_steps=st.integers(1, 90),
    batch=st.integers(1, 3),
    chunk_size=st.sampled_from([None, 1, 2, 5, 1000]),
)
@example(strides={10, 3, 1}, num_steps=40, batch=2, chunk_size=4)
@example(strides={16, 6, 5, 2}, num_steps=77, batch=1, chunk_size=None)
@example(strides={1, 2, 4, 8, 16}, num_steps=64, batch=2, chunk_size=7)
@example(strides={40}, num_steps=1, batch=1, chunk_size=None)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_it_is_the_definition_for_all_strides(strides, num_steps, batch, chunk_size):
    model = hierarchy(strides)
    x0 = start(batch)
    expected, computed = reference(model, x0, num_steps)
    ours, rows = model.forecast(x0, num_steps, chunk_size=chunk_size, return_indices=True)
    torch.testing.assert_close(ours, expected)
    assert rows.tolist() == computed


@given(strides=some_strides, num_steps=st.integers(1, 50), data=st.data())
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_any_increasing_times_may_be_asked_for(strides, num_steps, data):
    times = sorted(
        data.draw(st.sets(st.integers(0, 4 * num_steps), min_size=1, max_size=9).map(list))
    )
    times = [t / 4 for t in times]
    model, x0 = hierarchy(strides), start()
    expected, computed = reference(model, x0, num_steps, times)
    ours, rows = model.forecast(x0, num_steps, times=times, return_indices=True)
    torch.testing.assert_close(ours, expected)
    assert rows.tolist() == computed


def test_times_may_be_a_tensor_and_time_0_is_the_start():
    x0 = start()
    states = hierarchy([2, 5]).forecast(x0, 10, times=torch.tensor([0, 0.5, 10.0]))
    assert states.shape == (3, 3, 2)
    assert torch.equal(states[:, 0], x0)


class Exact:
    """The flow of dx/dt = -x, as a plain callable with a stride."""

    def __init__(self, step_size, dt=0.1):
        self.step_size = step_size
        self.factor = np.exp(-dt * step_size)

    def __call__(self, x):
        return self.factor * x


def test_exact_flows_of_any_strides_give_the_exact_solution():
    x0 = start(4)
    states = HierarchicalTimeStepper([Exact(7), Exact(1), Exact(30)]).forecast(x0, 100)
    t = 0.1 * torch.arange(1, 101, dtype=torch.float64)
    torch.testing.assert_close(states, x0[:, None] * torch.exp(-t)[:, None])


def test_a_single_stepper_is_linear_between_its_strides():
    x0 = torch.ones(1, 1, dtype=torch.float64)
    alone = TimeStepper(MLP(1, 1, []), 4).double()
    states = alone.forecast(x0, 8)
    later = alone(x0)
    quarters = torch.arange(1, 5, dtype=torch.float64)[:, None] / 4
    torch.testing.assert_close(states[0, :4], x0 + quarters * (later - x0))
    torch.testing.assert_close(states[:, 7], alone(later))


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("dopri5", 5)]
)
def test_an_integrator_has_its_order(method, order):
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def error(step_size):
        turn = IntegratorStepper(
            lambda x: x.flip(-1) * x.new_tensor([1, -1]), 0.1, step_size, method
        )
        exact = torch.tensor([np.cos(0.1 * step_size), -np.sin(0.1 * step_size)])
        return (turn(x0)[0] - exact).abs().max().item()

    if method == "dopri5":  # its step is its own business, its tolerance 1e-7
        assert error(8) < 1e-6
    else:
        assert error(8) / error(4) == pytest.approx(2 ** (order + 1), rel=0.2)


@torch.no_grad()
def test_a_field_is_a_state_and_a_unet_a_stepper():
    networks = [
        UNet(2, 2, [4, 8], spatial_dims=1, norm=None, padding_mode="circular") for _ in range(2)
    ]
    model = HierarchicalTimeStepper(
        [TimeStepper(network, s) for network, s in zip(networks, (1, 4), strict=True)]
    ).eval()
    x0 = torch.randn(3, 2, 16)
    states = model.forecast(x0, 9, chunk_size=2)
    assert states.shape == (3, 9, 2, 16)
    fine, coarse = model.steppers
    torch.testing.assert_close(states[:, 7], coarse(coarse(x0)))
    torch.testing.assert_close(states[:, 5], fine(fine(coarse(x0))))


@pytest.mark.parametrize("strides", [(1, 2, 4), (2, 3), (5,)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_through_the_forecast(strides, chunk_size):
    model = hierarchy(strides)
    x0 = start(2).requires_grad_()
    parameters = [p for p in model.parameters() if p.ndim == 1]

    def forecast(x0, *_):
        return model.forecast(x0, 7, chunk_size=chunk_size)

    assert torch.autograd.gradcheck(forecast, (x0, *parameters))


def test_every_stride_gets_a_gradient_and_none_is_recorded_without():
    model = hierarchy([1, 3, 9])
    model.forecast(start(), 20).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert not model.forecast(start(), 20).requires_grad


@torch.no_grad()
def test_memory_beyond_the_result_is_that_of_a_chunk():
    model = HierarchicalTimeStepper([TimeStepper(MLP(2, 2, [64] * 2), s) for s in (1, 16)])
    x0 = torch.randn(20, 2)
    result = 20 * 513 * 2 * 4
    peak = peak_tensor_bytes(lambda: model.forecast(x0, 512, chunk_size=100))
    assert peak < result + 4 * 100 * 64 * 4
    assert peak < peak_tensor_bytes(lambda: model.forecast(x0, 512, chunk_size=10_000)) / 2


@torch.no_grad()
def test_no_network_is_called_more_often_than_needed():
    calls = []

    class Counting(Exact):
        def __call__(self, x):
            calls.append(len(x))
            return super().__call__(x)

    HierarchicalTimeStepper([Counting(s) for s in (1, 2, 4, 8, 16)]).forecast(start(10), 1600)
    assert sum(calls) == 1600 * 10


def test_a_diverging_forecast_is_returned_and_named():
    class Doubling(Exact):
        def __call__(self, x):
            return x * 1e30

    model = HierarchicalTimeStepper([Doubling(2), Doubling(1)])
    x0 = torch.ones(2, 2)
    with pytest.warns(RuntimeWarning, match="the forecast is not finite from step 3 on"):
        states = model.forecast(x0, 8)
    assert states[:, :2].isfinite().all()
    assert states[:, 3].isinf().all()
    with pytest.warns(RuntimeWarning, match=r"not finite from time 3\.5 on"):
        model.forecast(x0, 8, times=[0.5, 2, 3.5, 8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.forecast(x0, 2)


def test_the_contract_of_every_module(tmp_path):
    model = hierarchy([4, 1])
    x0 = start()
    before, expected = x0.clone(), model(x0, 10)
    assert torch.equal(x0, before)
    assert expected.dtype == torch.float64
    assert torch.equal(pickle.loads(pickle.dumps(model))(x0, 10), expected)
    assert torch.equal(copy.deepcopy(model)(x0, 10), expected)
    assert len(list(model.parameters())) == 8
    save(model.float(), tmp_path / "hierarchy.nx")
    twin = load(tmp_path / "hierarchy.nx")
    assert torch.equal(twin(x0.float(), 10), model(x0.float(), 10))
    torch.testing.assert_close(model(x0.float().T.contiguous().T, 10), model(x0.float(), 10))
    other = HierarchicalTimeStepper(**model.config)
    assert repr(other) == repr(model)
    single = model(x0[:1].float(), 10)
    torch.testing.assert_close(single, model(x0.float(), 10)[:1])


@pytest.mark.slow
def test_a_file_is_read_before_anything_else_of_its_part_is_imported(tmp_path):
    save(hierarchy([4, 1]).float(), tmp_path / "hierarchy.nx")
    code = "import sys, neurenix_ms as nms; nms.load(sys.argv[1]).forecast"
    subprocess.run([sys.executable, "-c", code, tmp_path / "hierarchy.nx"], check=True)


def test_a_hierarchy_with_a_function_is_filled_not_built(tmp_path):
    def build():
        return HierarchicalTimeStepper([stepper(8), IntegratorStepper(torch.neg, 0.1, 1)])

    model, other = build(), build()
    save(model, tmp_path / "hybrid.nx")
    with pytest.raises(ValueError, match="cannot be rebuilt from the file alone"):
        load(tmp_path / "hybrid.nx")
    load(tmp_path / "hybrid.nx", other)
    x0 = start()
    assert torch.equal(other(x0, 9), model(x0, 9))


def test_some_of_the_strides_share_their_weights():
    model = hierarchy([1, 4, 16])
    part = model.only([16, 1])
    assert part.step_sizes == [16, 1]
    assert part.coarse_first()[0] is model.coarse_first()[0]


def test_standardized_networks_keep_the_units():
    inner = nn.Linear(2, 2)
    network = StandardizedNetwork(inner, [1.0, 2.0], [3.0, 4.0], [0.5, 0.25])
    x = torch.randn(5, 2)
    expected = torch.tensor([0.5, 0.25]) * inner(
        (x - torch.tensor([1.0, 2])) / torch.tensor([3, 4])
    )
    torch.testing.assert_close(network(x), expected)
    assert set(network.state_dict()) == {"network.weight", "network.bias"}
    field = StandardizedNetwork(nn.Identity(), [1.0, 2.0], [1.0, 1.0], [1.0, 1.0])
    torch.testing.assert_close(field(torch.zeros(1, 2, 3))[0, :, 0], torch.tensor([-1.0, -2.0]))


def nan_start():
    return torch.stack([torch.zeros(2), torch.tensor([0, torch.nan])]).double()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TimeStepper(MLP(2, 2), 0), "step_size must be at least 1, got 0"),
        (lambda: IntegratorStepper(torch.neg, 0.1, 0), "step_size must be at least 1, got 0"),
        (lambda: IntegratorStepper(torch.neg, 0.0, 1), r"dt must be positive, got 0\.0"),
        (lambda: HierarchicalTimeStepper([]), "at least one stepper, got none"),
        (
            lambda: hierarchy([1, 4, 4]),
            r"steppers must have different strides, got \[1, 4, 4\]",
        ),
        (
            lambda: HierarchicalTimeStepper([Exact(0), Exact(2)]),
            r"steppers\[0\]\.step_size must be at least 1, got 0",
        ),
        (
            lambda: TimeStepper(nn.Linear(2, 3), 1)(torch.zeros(4, 2)),
            r"change of the state's shape \(4, 2\), got \(4, 3\)",
        ),
        (
            lambda: hierarchy([1]).forecast(start(dims=3), 5),
            r"the last axis must have length 2, got shape \(3, 3\)",
        ),
        (lambda: hierarchy([1]).forecast(start()[0], 5), r"x0 must be a batch.*got shape \(2,\)"),
        (lambda: hierarchy([1]).forecast(start(), 0), "num_steps must be at least 1, got 0"),
        (
            lambda: hierarchy([1]).forecast(start(), 5, chunk_size=0),
            "chunk_size must be at least 1, got 0",
        ),
        (
            lambda: hierarchy([1]).forecast(nan_start(), 5),
            "x0 must be finite, got NaN or inf in sample 1",
        ),
        (
            lambda: hierarchy([1]).forecast(start(), 5, times=[1, 3, 2.5]),
            r"times must increase, got 3 before 2\.5",
        ),
        (
            lambda: hierarchy([1]).forecast(start(), 5, times=[1, 1]),
            "times must increase, got 1 before 1",
        ),
        (
            lambda: hierarchy([1]).forecast(start(), 5, times=[1, 5.5]),
            r"between 0 and num_steps = 5, got 1 to 5\.5",
        ),
        (
            lambda: hierarchy([1]).forecast(start(), 5, times=[-1, 5]),
            "between 0 and num_steps = 5, got -1 to 5",
        ),
        (
            lambda: hierarchy([1]).forecast(start(), 5, times=[]),
            r"times must be a sequence of numbers, got shape \(0,\)",
        ),
        (
            lambda: hierarchy([1, 2]).only([2, 8]),
            r"step_sizes must be among \[2, 1\], got \[8\]",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_function_that_changes_the_shape_is_named_by_its_stride():
    class Half(Exact):
        def __call__(self, x):
            return x[:, :1]

    with pytest.raises(
        ValueError, match=r"with step size 3 must keep the shape \(3, 2\), got \(3, 1\)"
    ):
        HierarchicalTimeStepper([Half(3)]).forecast(start(), 6)
