"""Multiscale transforms compared with F.interpolate and depthwise convolutions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import peers, plain_transforms
from benchmarks.paired import measure_forward, only_in_full, with_peer
from neurenix_ms import (
    GaussianPyramid,
    LaplacianPyramid,
    MultiScaleTransform,
    PyramidDownsample,
)

Ways = dict[str, Callable[[Any], Any]]


def scales(dims: int) -> Ways:
    return {
        "plain": lambda x: plain_transforms.scaled_list(x, [1.0, 0.5, 0.25]),
        "ours": MultiScaleTransform(spatial_dims=dims),
    }


def halves(dims: int) -> Ways:
    return {
        "plain": lambda x: plain_transforms.halved_list(x, 4),
        "ours": PyramidDownsample(4, spatial_dims=dims),
    }


def gaussian(dims: int) -> Ways:
    return {
        "plain": plain_transforms.GaussianPyramid(4, 1.0, dims),
        "plain, per axis": plain_transforms.GaussianPyramid(4, 1.0, dims, separable=True),
        "ours": GaussianPyramid(4, spatial_dims=dims),
    }


def binomial(dims: int) -> Ways:
    ours = GaussianPyramid(4, sigma=None, spatial_dims=dims)
    return {"plain": plain_transforms.GaussianPyramid(4, None, dims), "ours": ours}


def laplacian(dims: int) -> Ways:
    ours = LaplacianPyramid(4, sigma=None, spatial_dims=dims)
    return {"plain": plain_transforms.LaplacianPyramid(4, dims), "ours": ours}


MAKERS: dict[str, Callable[[int], Ways]] = {
    "MultiScaleTransform": scales,
    "PyramidDownsample": halves,
    "GaussianPyramid": gaussian,
    "GaussianPyramid, binomial": binomial,
    "LaplacianPyramid, binomial": laplacian,
}
PEERS = {
    "GaussianPyramid, binomial": {"kornia": partial(peers.kornia_pyramid, 4)},
    "LaplacianPyramid, binomial": {"kornia": partial(peers.kornia_laplacian, 4)},
}
SIZES = [(1, 4096), (2, 64), (2, 512), (3, 48)]
LARGE = [(1, 2**20), (2, 2048), (3, 128)]
CASES = [(name, way) for name, make in MAKERS.items() for way in (*make(2), *PEERS.get(name, ()))]


@pytest.mark.benchmark(group="transforms/forward")
@pytest.mark.parametrize(("dims", "size"), SIZES + LARGE)
@pytest.mark.parametrize(("block", "variant"), CASES)
def test_transforms_forward(block, dims, size, variant, measure, request):
    if variant == "kornia" and dims != 2:
        pytest.skip("kornia's pyramids have two axes")
    if (dims, size) in LARGE:
        only_in_full(request)
    x = torch.randn(1, 4 if dims == 3 else 16, *(size,) * dims)
    ways = with_peer(MAKERS[block](dims), PEERS.get(block, {}), variant)
    measure_forward(measure, ways, variant, x, same=variant != "kornia")
