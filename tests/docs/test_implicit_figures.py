"""Bytes and FLOPs published for implicit models hold in every build."""

from functools import partial

import pytest
import torch

from benchmarks import test_implicit as cases
from neurenix_ms.meter import count_flops, parameter_table, peak_tensor_bytes


@pytest.mark.parametrize("net", cases.NETS)
@pytest.mark.parametrize("kind", ["pairs", "grid"])
@pytest.mark.parametrize("training", [False, True])
def test_no_weights_per_point_take_an_eighth_of_the_memory_or_less(net, kind, training):
    models, args = cases.ways(net), getattr(cases, kind)(1000)
    run = []
    for model in models.values():
        call = model if kind == "pairs" else model.forward_grid
        some = partial(cases.step, model) if training else cases.without_gradients
        run.append(partial(some, call, *args))
    plain, ours = (peak_tensor_bytes(one) for one in run)
    assert ours <= plain / 8


@pytest.mark.parametrize("net", cases.NETS)
def test_a_model_without_four_fifths_of_its_nodes_does_a_third_or_less(net):
    models = cases.pruned(net, 0.8)
    p, x = torch.rand(10, 1), torch.rand(1000, 1)
    run = [partial(cases.without_gradients, model.forward_grid, p, x) for model in models.values()]
    masked, compacted = (count_flops(one) for one in run)
    assert compacted <= masked / 3
    masked, compacted = (parameter_table(model)[-1][1] for model in models.values())
    assert compacted <= masked / 3
    torch.testing.assert_close(run[0](), run[1](), rtol=1e-4, atol=1e-4)
