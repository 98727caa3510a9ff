"""Memory and FLOPs published for forecasts hold in every build."""

import torch

from benchmarks import test_timestepping
from benchmarks.paired import assert_equal
from neurenix_ms.meter import count_flops, peak_tensor_bytes
from neurenix_ms.timestepping import HierarchicalTimeStepper


def test_a_forecast_of_many_strides_costs_a_fraction_of_the_plain_implementation():
    model = test_timestepping.hierarchy().only([1, 2, 4, 8, 16, 32, 64, 128, 256])
    x0 = torch.randn(20, 2)
    ways = test_timestepping.rollouts(model, x0, 512)
    assert_equal(ways["ours"](), ways["plain"]())
    ours, theirs = (peak_tensor_bytes(ways[name]) for name in ("ours", "plain"))
    assert ours < theirs / 2
    # the plain implementation continues from the last coarse state to a stride beyond the end
    ours, theirs = (count_flops(ways[name]) for name in ("ours", "plain"))
    assert ours < 0.7 * theirs


def test_memory_does_not_grow_with_the_number_of_states_computed():
    model = test_timestepping.hierarchy()
    x0 = torch.randn(20, 2)
    few = HierarchicalTimeStepper([s for s in model.steppers if s.step_size >= 16])
    with torch.no_grad():
        peak = peak_tensor_bytes(lambda: model.forecast(x0, 2048))
        coarse = peak_tensor_bytes(lambda: few.forecast(x0, 2048))
    assert peak < coarse + 3 * 2**20
