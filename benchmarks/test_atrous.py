"""Pooling with several dilations against the plain way and torchvision's."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, plain
from benchmarks.paired import assert_equal, measure_forward, measure_step, with_peer
from neurenix_ms import AtrousPyramidPooling

DILATIONS = (12, 24, 36)
# axes, channels, edge, variants
SIZES = [
    (1, 64, 1024, ("plain", "ours")),
    (2, 64, 32, ("plain", "ours", "torchvision")),
    (2, 256, 64, ("plain", "ours", "torchvision")),
    (3, 16, 32, ("plain", "ours")),
    (3, 32, 32, ("plain", "ours")),
]
CASES = [(*case, variant) for *case, variants in SIZES for variant in variants]


def ways(dims: int, channels: int, variant: str, training: bool) -> dict[str, nn.Module]:
    ours = AtrousPyramidPooling(channels, channels, DILATIONS, spatial_dims=dims).train(training)
    theirs = plain.AtrousPooling(channels, channels, DILATIONS, dims)
    found = {"plain": plain.with_weights_of(ours, theirs), "ours": ours}
    return with_peer(found, {"torchvision": partial(peers.torchvision_aspp, ours)}, variant)


@pytest.mark.benchmark(group="atrous/forward")
@pytest.mark.parametrize(("dims", "channels", "size", "variant"), CASES)
def test_atrous_forward(dims, channels, size, variant, measure):
    x = torch.randn(1, channels, *(size,) * dims)
    measure_forward(measure, ways(dims, channels, variant, False), variant, x, rounds=5)


@pytest.mark.benchmark(group="atrous/train-step")
@pytest.mark.parametrize(("dims", "channels", "size", "variant"), CASES)
def test_atrous_train_step(dims, channels, size, variant, measure):
    batch = 2  # which the mean over the map needs in the plain way
    x = torch.randn(batch, channels, *(size,) * dims, requires_grad=True)
    found = ways(dims, channels, variant, True)
    with torch.no_grad():
        assert_equal(found[variant](x), found["plain"](x))

    def step(model: nn.Module, x: Tensor = x) -> None:
        model(x).square().mean().backward()
        model.zero_grad()
        x.grad = None

    steps = {name: partial(step, model) for name, model in found.items()}
    measure_step(measure, steps, variant, x, found[variant], rounds=3)
