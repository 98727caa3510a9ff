"""Pooling blocks compared with plain PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import peers, plain
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_in_full,
    with_peer,
)
from neurenix_ms import MultiScalePooling, PyramidPooling, SpatialPyramidPooling

Ways = dict[str, Callable[[Any], Any]]


def windows(pool_type: str, dims: int) -> Ways:
    sizes = [1, 5, 9] if dims == 3 else [1, 5, 9, 13]
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
    channels = 16 if dims == 3 else 64
    ours = PyramidPooling(channels, channels, spatial_dims=dims).eval()
    theirs = plain.PyramidPooling(channels, channels, [1, 2, 3, 6], dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


def views(dims: int) -> Ways:
    """Return pyramid pooling without projection, as in the PSP module of segmentation_models_pytorch."""
    ours = PyramidPooling(64, 64, branch_channels=16, project=False, align_corners=True).eval()
    theirs = plain.PyramidViews(64, 16, [1, 2, 3, 6], dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


MAKERS: dict[str, Callable[[int], Ways]] = {
    "MultiScalePooling avg": lambda dims: windows("avg", dims),
    "MultiScalePooling max": lambda dims: windows("max", dims),
    "SpatialPyramidPooling": grids,
    "PyramidPooling": context,
    "PyramidPooling, views": views,
}
SIZES = [(1, 1024), (2, 32), (2, 128), (3, 24)]
LARGE = [(1, 2**18), (2, 512), (3, 96)]
CASES = [(block, variant) for block in MAKERS for variant in ("plain", "ours")]
CASES.append(("PyramidPooling, views", "smp"))


@pytest.mark.benchmark(group="pooling/forward")
@pytest.mark.parametrize(("dims", "size"), SIZES + LARGE)
@pytest.mark.parametrize(("block", "variant"), CASES)
def test_pooling_forward(block, dims, size, variant, measure, request):
    if block == "PyramidPooling, views" and dims != 2:
        pytest.skip("the peer has two axes")
    if (dims, size) in LARGE:
        only_in_full(request)
    x = torch.randn(1, 16 if dims == 3 else 64, *(size,) * dims)
    ways = MAKERS[block](dims)
    ways = with_peer(ways, {"smp": lambda: peers.smp_views(ways["ours"])}, variant)
    measure_forward(measure, ways, variant, x)


@pytest.mark.benchmark(group="pooling/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize(("dims", "size"), [(1, 1024), (2, 32), (2, 96), (3, 24)])
@pytest.mark.parametrize("block", ["MultiScalePooling max", "PyramidPooling"])
def test_pooling_train_step(block, dims, size, variant, measure):
    x = torch.randn(2, 16 if dims == 3 else 64, *(size,) * dims, requires_grad=True)
    ways = MAKERS[block](dims)
    assert_equal(ways["ours"](x), ways["plain"](x))
    measure_step(measure, {name: partial(step, way, x) for name, way in ways.items()}, variant, x)


def step(way: Callable[[Any], Any], x: torch.Tensor) -> None:
    way(x).square().mean().backward()
    x.grad = None
    if isinstance(way, torch.nn.Module):
        way.zero_grad()
