"""The streams of a high-resolution network compared with plain PyTorch and timm."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import peers, plain, plain_streams
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_when_timing,
    with_peer,
)
from neurenix_ms import HighResolutionNetwork

FEATURES = {1: [32, 64, 128], 2: [16, 32, 64, 128], 3: [8, 16, 32]}
CASES = [
    (dims, size, variant)
    for dims, size, others in [(1, 4096, []), (2, 64, ["timm"]), (2, 128, ["timm"]), (3, 32, [])]
    for variant in ["plain", "ours", *others]
]


def ways(dims: int, variant: str, training: bool) -> dict[str, nn.Module]:
    """Return our streams, the plain ones, and timm's if requested, with the same weights."""
    widths = FEATURES[dims]
    ours = HighResolutionNetwork(
        widths[0], features=widths, spatial_dims=dims, stem_reductions=0
    ).train(training)
    found = {
        "plain": plain.with_weights_of(ours, plain_streams.Streams(ours)),
        "ours": ours,
    }
    return with_peer(found, {"timm": partial(peers.timm_streams, ours)}, variant)


def maps(dims: int, size: int, batch: int) -> torch.Tensor:
    return torch.randn(batch, FEATURES[dims][0], *(size,) * dims)


@pytest.mark.benchmark(group="streams/forward")
@pytest.mark.parametrize(("dims", "size", "variant"), CASES)
def test_streams_forward(dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    measure_forward(measure, ways(dims, variant, False), variant, maps(dims, size, 1), rounds=5)


@pytest.mark.benchmark(group="streams/train-step")
@pytest.mark.parametrize(("dims", "size", "variant"), CASES)
def test_streams_train_step(dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    x, models = maps(dims, size, 2), ways(dims, variant, True)
    with torch.no_grad():
        assert_equal(models[variant](x), models["plain"](x))

    def step(model: nn.Module) -> None:
        sum(y.square().mean() for y in model(x)).backward()
        model.zero_grad()

    steps = {name: partial(step, model) for name, model in models.items()}
    measure_step(measure, steps, variant, x, models[variant], rounds=3)
