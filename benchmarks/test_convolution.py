"""3-D convolution of single volumes compared with torch."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import plain
from benchmarks.paired import assert_equal, measure_forward, measure_step, train_step
from neurenix_ms._core.convolution import Conv3d

# channels and edge; torch uses its slow kernel for all but the last
CASES = [(8, 16), (8, 32), (16, 16), (16, 32), (32, 16), (64, 8), (64, 16), (16, 48)]


def layers(channels: int) -> dict[str, nn.Module]:
    ours = Conv3d(channels, channels, 3, padding=1)
    theirs = nn.Conv3d(channels, channels, 3, padding=1)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


@pytest.mark.headline
@pytest.mark.benchmark(group="convolution/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize(("channels", "size"), CASES)
def test_convolution_forward(channels, size, variant, measure):
    x = torch.randn(1, channels, size, size, size)
    measure_forward(measure, layers(channels), variant, x, resident=True)


@pytest.mark.benchmark(group="convolution/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize(("channels", "size"), CASES)
def test_convolution_train_step(channels, size, variant, measure):
    x = torch.randn(1, channels, size, size, size, requires_grad=True)
    ways = layers(channels)
    assert_equal(ways["ours"](x), ways["plain"](x))
    steps = {name: partial(step, way, x) for name, way in ways.items()}
    measure_step(measure, steps, variant, x, ways[variant])


def step(layer: nn.Module, x: torch.Tensor) -> None:
    """Run a training step with a gradient for the volume, as inside a network."""
    train_step(layer, x)
    x.grad = None
