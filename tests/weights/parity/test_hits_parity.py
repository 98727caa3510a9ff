"""Hierarchical time-steppers against arrays that the original code computed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.files import load, save
from neurenix_ms.timestepping import HierarchicalTimeStepper, IntegratorStepper
from neurenix_ms.weights import load_hits

DATA = Path(__file__).parent / "data" / "hits_vanderpol_small.npz"
with np.load(DATA) as file:
    ARRAYS = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind == "f"}
STRIDES = [1, 4, 16]


def named(*starts):
    keys = [key for key in ARRAYS if key.split("/")[0] in starts]
    return pytest.mark.parametrize("key", sorted(keys))


def states(stride):
    start = f"step{stride}/"
    return {k.removeprefix(start): v for k, v in ARRAYS.items() if k.startswith(start)}


def hierarchy(strides=STRIDES):
    return load_hits({stride: states(stride) for stride in strides})


def read_off(key):
    """Read the strides and the number of steps from the name of an array."""
    _, strides, number = key.split("/")
    strides = strides.removeprefix("steps").removeprefix("step")
    return [int(s) for s in strides.split("-")], int(number[1:])


def van_der_pol(x):
    position, velocity = x.unbind(-1)
    return torch.stack([velocity, 2 * (1 - position**2) * velocity - position], dim=-1)


def close(ours, theirs, key):
    in_float64 = "64" in key.split("/")[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 if in_float64 else 1e-5)


@named("multi", "multi64")
@torch.no_grad()
def test_the_coupled_forecast(key):
    strides, num_steps = read_off(key)
    expected = ARRAYS[key]
    model = hierarchy(strides).to(expected.dtype)
    x0 = ARRAYS["x_init"].to(expected.dtype)
    for chunk_size in (None, 1, 3, 7, 50):
        close(model.forecast(x0, num_steps, chunk_size=chunk_size), expected, key)


@named("serial")
@torch.no_grad()
def test_walked_one_interval_after_another_it_is_the_same_up_to_the_last_known_row(key):
    strides, num_steps = read_off(key)
    ours = hierarchy(strides).forecast(ARRAYS["x_init"], num_steps)
    same = 108 if key == "serial/steps4-16/n110" else num_steps
    close(ours[:, :same], ARRAYS[key][:, :same], key)


@named("uni", "uni64")
@torch.no_grad()
def test_a_single_stride(key):
    (stride,), num_steps = read_off(key)
    expected = ARRAYS[key]
    model = hierarchy([stride]).to(expected.dtype)
    ours = model.steppers[0].forecast(ARRAYS["x_init"].to(expected.dtype), num_steps)
    rows = slice(max(1, stride - 1), None)  # the original puts the start at time dt, ours at 0
    close(ours[:, rows], expected[:, rows], key)


@named("forward")
def test_one_step(key):
    stride = int(key.removeprefix("forward/step"))
    close(hierarchy([stride]).steppers[0](ARRAYS["x_init"]), ARRAYS[key], key)


@named("hybrid")
@torch.no_grad()
def test_an_integrator_as_the_fine_level(key):
    _, _, method, number = key.split("/")
    fine = IntegratorStepper(van_der_pol, 0.01, int(method.removeprefix("rk4h")))
    model = HierarchicalTimeStepper([fine, *hierarchy([16]).steppers])
    close(model.forecast(ARRAYS["x_init"], int(number[1:])), ARRAYS[key], key)


@named("rk4")
@torch.no_grad()
def test_an_integrator_alone(key):
    model = HierarchicalTimeStepper([IntegratorStepper(van_der_pol, 0.01, 1)])
    expected = ARRAYS[key][:, 1:]
    close(model.forecast(ARRAYS["x_init"], expected.shape[1]), expected, key)


def test_widths_are_read_off_the_arrays_and_the_order_does_not_matter():
    model = load_hits({stride: states(stride) for stride in (4, 16, 1)})
    assert model.step_sizes == [16, 4, 1]
    assert {tuple(stepper.network.hidden) for stepper in model.steppers} == {(32, 32)}
    assert load_hits({1: {k: v.numpy() for k, v in states(1).items()}}).step_sizes == [1]


def test_a_hierarchy_is_one_file(tmp_path):
    model = hierarchy()
    save(model, tmp_path / "hits.nx")
    twin = load(tmp_path / "hits.nx")
    x0 = ARRAYS["x_init"]
    assert torch.equal(twin.forecast(x0, 50), model.forecast(x0, 50))


def changed(**entries):
    return {1: {k: v for k, v in (states(1) | entries).items() if v is not None}}


@pytest.mark.parametrize(
    ("state_dicts", "message"),
    [
        ({}, "load_hits needs a state dict for at least one stride, got none"),
        (
            changed(**{"increment.Linear_1.bias": None}),
            r"step size 1: .*must have .*Linear_1\.bias",
        ),
        (changed(**{"increment.Linear_1.weight": None}), r"must have .*Linear_1\.weight"),
        (changed(**{"norm.weight": np.zeros(1)}), r"step size 1: .*unexpected.*'norm\.weight'"),
        (
            changed(**{"increment.Linear_1.bias": np.zeros(5)}),
            r"step size 1: layers\.1\.bias must have shape \(32,\), got \(5,\)",
        ),
    ],
)
def test_missing_and_unexpected_names_and_shape_mismatches_are_listed(state_dicts, message):
    with pytest.raises(ValueError, match=message):
        load_hits(state_dicts)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "model._orig_mod."])
def test_the_prefixes_of_tools_are_taken_off(prefix):
    wrapped = {f"{prefix}{name}": value for name, value in states(4).items()}
    expected = hierarchy([4]).state_dict()
    for given in (wrapped, {"state_dict": {**wrapped, "loss.scale": torch.ones(1)}, "epoch": 1}):
        for name, value in load_hits({4: given}).state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"increment.Linear_0.weight": torch.zeros(())}, "must be a matrix or a vector"),
        ({"increment.Linear_999999999.weight": torch.zeros(1, 1)}, "must have increment.Linear_"),
        (
            {"foreign": torch.zeros(1)},
            r"step size 4: .*unexpected .*'foreign' \(also with the prefixes",
        ),
        ({3: torch.zeros(1)}, "step size 4: a state dict must have strings as names, got 3"),
    ],
)
def test_an_invalid_state_dict_raises_quickly(change, words):
    with pytest.raises(ValueError, match=words):
        load_hits({4: {**states(4), **change}})


@pytest.mark.parametrize("given", [[], {}, None, 3, {4: 5}, {"a": {}}, {0: {}}, {-1: {}}])
def test_inputs_other_than_dicts_of_state_dicts_raise(given):
    with pytest.raises(ValueError, match=r"state_dicts|load_hits needs|step size"):
        load_hits(given)
