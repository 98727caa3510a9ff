"""Poolings against the functions of torch and a concatenation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import plain
from benchmarks.paired import measure_forward
from neurenix_ms import MultiScalePooling, PyramidPooling, SpatialPyramidPooling

Ways = dict[str, Callable[[Any], Any]]


def windows(pool_type: str, dims: int) -> Ways:
    sizes = [1, 5, 9, 13] if dims == 2 else [1, 5, 9]
    return {
        "plain": lambda x: plain.stacked_pools(x, sizes, pool_type),
        "ours": MultiScalePooling(sizes, pool_type, spatial_dims=dims),
    }


def grids(dims: int) -> Ways:
    return {
        "plain": lambda x: plain.pooled_grids(x, [1, 2, 4]),
        "ours": SpatialPyramidPooling(3, spatial_dims=dims),
    }


def context(dims: int) -> Ways:
    channels = 64 if dims == 2 else 16
    ours = PyramidPooling(channels, channels, spatial_dims=dims).eval()
    theirs = plain.PyramidPooling(channels, channels, [1, 2, 3, 6], dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


MAKERS: dict[str, Callable[[int], Ways]] = {
    "MultiScalePooling avg": lambda dims: windows("avg", dims),
    "MultiScalePooling max": lambda dims: windows("max", dims),
    "SpatialPyramidPooling": grids,
    "PyramidPooling": context,
}


@pytest.mark.benchmark(group="pooling/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize(("dims", "size"), [(2, 32), (2, 128), (3, 24)])
@pytest.mark.parametrize("block", MAKERS)
def test_pooling_forward(block, dims, size, variant, measure):
    x = torch.randn(1, 64 if dims == 2 else 16, *(size,) * dims)
    measure_forward(measure, MAKERS[block](dims), variant, x)
