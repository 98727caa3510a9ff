"""Fourier mixing of few modes beside the fast transform of all of them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain, plain_spectral
from benchmarks.paired import assert_equal, measure_forward, measure_step
from neurenix_ms import SpectralMixing

# axes, channels, modes, edge
SIZES = [
    (1, 32, 16, 1024),
    (2, 32, 8, 32),
    (2, 32, 12, 64),
    (2, 32, 12, 128),
    (3, 16, 4, 16),
    (3, 16, 8, 32),
]
CASES = [(*case, variant) for case in SIZES for variant in ("plain", "ours")]


def ways(dims: int, channels: int, modes: int) -> dict[str, nn.Module]:
    ours = SpectralMixing(channels, channels, modes, spatial_dims=dims)
    theirs = plain_spectral.SpectralMixing(channels, channels, [modes] * dims, dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


@pytest.mark.benchmark(group="spectral/forward")
@pytest.mark.parametrize(("dims", "channels", "modes", "size", "variant"), CASES)
def test_spectral_forward(dims, channels, modes, size, variant, measure):
    x = torch.randn(1, channels, *(size,) * dims)
    measure_forward(measure, ways(dims, channels, modes), variant, x)


@pytest.mark.benchmark(group="spectral/train-step")
@pytest.mark.parametrize(("dims", "channels", "modes", "size", "variant"), CASES)
def test_spectral_train_step(dims, channels, modes, size, variant, measure):
    x = torch.randn(2, channels, *(size,) * dims, requires_grad=True)
    found = ways(dims, channels, modes)
    assert_equal(found["ours"](x), found["plain"](x))

    def step(model: nn.Module, x: Tensor = x) -> None:
        model(x).square().mean().backward()
        model.zero_grad()
        x.grad = None

    steps = {name: partial(step, model) for name, model in found.items()}
    measure_step(measure, steps, variant, x, found[variant])
