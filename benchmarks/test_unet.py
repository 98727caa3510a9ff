"""U-Nets against the same network written the plain way."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    only_when_timing,
    paired,
    train_step,
)
from neurenix_ms import UNet

DEFAULT = (64, 128, 256, 512)
HALF = (32, 64, 128, 256)
SMALL = (16, 32, 64)
FORMATS = {
    ("contiguous", 2): torch.contiguous_format,
    ("contiguous", 3): torch.contiguous_format,
    ("channels last", 2): torch.channels_last,
    ("channels last", 3): torch.channels_last_3d,
}
CHECKPOINTING = "ours, checkpointing"
STEPS = ["plain", "ours", CHECKPOINTING, "torch.utils.checkpoint"]


def ours(features, dims: int) -> UNet:
    return UNet(3, 1, features, spatial_dims=dims, remember=False)


def plain_way(model: UNet, run=plain.call) -> plain.UNet:
    return plain.with_weights_of(model, plain.UNet(3, 1, model.features, model.spatial_dims, run))


def cube(size: int, dims: int) -> Tensor:
    return torch.randn(1, 3, *(size,) * dims)


@pytest.mark.benchmark(group="unet/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
@pytest.mark.parametrize(("dims", "size"), [(2, 64), (2, 256), (3, 48)])
def test_unet_forward(dims, size, memory, variant, measure, request):
    if size == 256:
        only_when_timing(request)
    layout = FORMATS[memory, dims]
    model = ours(DEFAULT if dims == 2 else SMALL, dims).eval()
    ways = {"plain": plain_way(model), "ours": model}
    ways = {name: way.to(memory_format=layout) for name, way in ways.items()}
    x = cube(size, dims).contiguous(memory_format=layout)
    measure_forward(measure, ways, variant, x, rounds=3)


def network_of(variant: str, model: UNet) -> nn.Module:
    """The network that takes the step of a variant, after a look at its output."""
    baseline = plain_way(model)
    if variant.startswith("ours"):
        chosen: nn.Module = model
    elif variant == "plain":
        chosen = baseline
    else:
        chosen = plain_way(model, plain.call_checkpointed)
    corner = cube(32, model.spatial_dims)
    with torch.no_grad():
        assert_equal(chosen(corner), baseline(corner))
    return chosen


@pytest.mark.benchmark(group="unet/train-step")
@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize("size", [64, 384])
def test_unet_train_step(size, variant, measure, request):
    if size == 384:
        only_when_timing(request)
    x = cube(size, 2)
    network = network_of(variant, ours(DEFAULT, 2))
    on = variant == CHECKPOINTING
    step = partial(train_step, network, x, on)
    measure(step, 1, model=network, x=x, rounds=5 if size < 384 else 1)


@pytest.mark.benchmark(group="memory/checkpointing")
@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize(("dims", "size"), [(2, 64), (2, 192), (3, 32)])
def test_memory_of_checkpointing(dims, size, variant, measure, request):
    if size == 192:
        only_when_timing(request)
    x = cube(size, dims)
    model = ours(HALF if dims == 2 else SMALL, dims)
    network = network_of(variant, model)
    on = variant == CHECKPOINTING
    step = partial(train_step, network, x, on)
    measured = measure(step, 1, model=network, x=x, rounds=3, resident=True)
    if variant != "plain":
        baseline = partial(train_step, plain_way(model), x)
        trial = request.config.getoption("benchmark_disable")
        measured["cpu_time_ratio"] = paired(step, baseline, rounds=1 if trial else 3)
