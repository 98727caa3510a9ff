"""Maps at several scales against F.interpolate and depthwise convolutions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import plain
from benchmarks.paired import measure_forward
from neurenix_ms import GaussianPyramid, MultiScaleTransform, PyramidDownsample

Ways = dict[str, Callable[[Any], Any]]


def scales(dims: int) -> Ways:
    return {
        "plain": lambda x: plain.scaled_list(x, [1.0, 0.5, 0.25]),
        "ours": MultiScaleTransform(spatial_dims=dims),
    }


def halves(dims: int) -> Ways:
    return {
        "plain": lambda x: plain.halved_list(x, 4),
        "ours": PyramidDownsample(4, spatial_dims=dims),
    }


def gaussian(dims: int) -> Ways:
    return {
        "plain": plain.GaussianPyramid(4, 1.0, dims),
        "plain, per axis": plain.GaussianPyramid(4, 1.0, dims, separable=True),
        "ours": GaussianPyramid(4, spatial_dims=dims),
    }


MAKERS: dict[str, Callable[[int], Ways]] = {
    "MultiScaleTransform": scales,
    "PyramidDownsample": halves,
    "GaussianPyramid": gaussian,
}
CASES = [(name, way) for name, make in MAKERS.items() for way in make(2)]


@pytest.mark.benchmark(group="transforms/forward")
@pytest.mark.parametrize(("dims", "size"), [(2, 64), (2, 512), (3, 48)])
@pytest.mark.parametrize(("block", "variant"), CASES)
def test_transforms_forward(block, dims, size, variant, measure):
    x = torch.randn(1, 16 if dims == 2 else 4, *(size,) * dims)
    measure_forward(measure, MAKERS[block](dims), variant, x)
