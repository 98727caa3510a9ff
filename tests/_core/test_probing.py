"""Copies of networks on meta tensors return shapes without side effects."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from neurenix_ms._core.probing import memoryless_copy
from neurenix_ms.meter import peak_tensor_bytes


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(True)
    )


def shape_at(model: nn.Module, *shape: int) -> tuple[int, ...]:
    like = next(model.parameters())
    with memoryless_copy(model) as copied:
        return tuple(copied(torch.zeros(shape, dtype=like.dtype, device=like.device)).shape)


def test_any_size_costs_no_memory():
    model = network()
    assert peak_tensor_bytes(lambda: shape_at(model, 2, 3, 2_000_001, 30_000)) < 10_000
    assert shape_at(model, 2, 3, 2_000_001, 30_000) == (2, 4, 1_000_001, 15_000)


def test_the_network_and_the_generator_stay_as_they_were():
    model = network()
    model[2].eval()
    calls = []
    model.register_forward_hook(lambda module, *_: calls.append(module is model))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    shape_at(model, 2, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert calls == [False]  # of the copy
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize(
    "where", ["meta", "fake", "inference", "autocast", "double", "no_grad", "grad"]
)
def test_it_works_wherever_a_model_is_built(where: str):
    context: Any = {
        "meta": lambda: torch.device("meta"),
        "fake": lambda: FakeTensorMode(allow_non_fake_inputs=True),
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
    }.get(where, torch.enable_grad)
    with context():
        model = network()
        model = model.double() if where == "double" else model
        assert shape_at(model, 1, 3, 5, 7) == (1, 4, 3, 4)


def test_outer_counters_do_not_count_the_probe():
    with FlopCounterMode(display=False) as counter:
        shape_at(network(), 2, 3, 64, 64)
    assert counter.get_total_flops() == 0


def test_a_network_that_needs_values_raises():
    class Valued(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with (
        memoryless_copy(Valued()) as copied,
        pytest.raises(RuntimeError, match="_local_scalar_dense"),
    ):
        copied(torch.zeros(2))
