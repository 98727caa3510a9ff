"""U-Nets compared with plain PyTorch and MONAI."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, plain
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_in_full,
    only_when_timing,
    train_step,
    with_peer,
)
from neurenix_ms import UNet

DEFAULT = (64, 128, 256, 512)
HALF = (32, 64, 128, 256)
SMALL = (16, 32, 64)
LARGE = [(1, 2**17), (2, 1024), (2, 2048), (3, 128), (3, 256)]
FORMATS = {
    ("contiguous", 1): torch.contiguous_format,
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
@pytest.mark.parametrize(("dims", "size"), [(1, 1024), (2, 64), (2, 256), (3, 48), *LARGE])
def test_unet_forward(dims, size, memory, variant, measure, request):
    if (memory, dims) not in FORMATS:
        pytest.skip("one axis has one order")
    if (dims, size) in ((2, 2048), (3, 256)) and memory != "contiguous":
        pytest.skip("minutes, to say what the half of it says")
    if (dims, size) in LARGE:
        only_in_full(request)
    elif size == 256:
        only_when_timing(request)
    layout = FORMATS[memory, dims]
    model = ours(SMALL if dims == 3 else DEFAULT, dims).eval()
    ways = {"plain": plain_way(model), "ours": model}
    ways = {name: way.to(memory_format=layout) for name, way in ways.items()}
    x = cube(size, dims).contiguous(memory_format=layout)
    measure_forward(measure, ways, variant, x, rounds=3)


def as_monai(dims: int) -> UNet:
    """Return a U-Net with MONAI's blocks: transposed convolutions, instance norm, leaky ReLU."""
    return UNet(
        1,
        2,
        (16, 16, 32, 64) if dims == 3 else (32, 32, 64, 128),
        bottleneck_channels=128 if dims == 3 else 256,
        spatial_dims=dims,
        bilinear=False,
        norm="instance",
        act=partial(nn.LeakyReLU, peers.SLOPE, inplace=True),
        remember=False,
    )


def with_monai(variant: str, dims: int) -> dict[str, nn.Module]:
    """Return our U-Net, the plain one, and MONAI's if requested."""
    model = as_monai(dims)
    by_hand = plain.with_weights_of(model, plain.TransposedUNet(model, peers.SLOPE))
    ways = {"plain": by_hand, "ours": model}
    return with_peer(ways, {"monai": lambda: peers.monai_unet(model)}, variant)


@pytest.mark.benchmark(group="unet/forward, as MONAI's")
@pytest.mark.parametrize("variant", ["plain", "ours", "monai"])
@pytest.mark.parametrize(
    ("dims", "size"), [(1, 1024), (2, 64), (2, 256), (3, 32), (3, 64), (3, 128)]
)
def test_unet_of_monai(dims, size, variant, measure, request):
    if (dims, size) == (3, 128):
        only_in_full(request)
    elif size in (256, 64) and (dims, size) != (2, 64):
        only_when_timing(request)
    ways = {name: way.eval() for name, way in with_monai(variant, dims).items()}
    measure_forward(measure, ways, variant, torch.randn(1, 1, *(size,) * dims), rounds=3)


@pytest.mark.benchmark(group="unet/train-step, as MONAI's")
@pytest.mark.parametrize("variant", ["plain", "ours", "monai"])
@pytest.mark.parametrize(("dims", "size"), [(1, 1024), (2, 64), (2, 256), (3, 32), (3, 64)])
def test_unet_step_of_monai(dims, size, variant, measure, request):
    if size in (256, 64) and (dims, size) != (2, 64):
        only_when_timing(request)
    x = torch.randn(1, 1, *(size,) * dims)
    ways = with_monai(variant, dims)
    assert_equal(ways[variant](x), ways["plain"](x))
    steps = {name: partial(train_step, way, x) for name, way in ways.items()}
    measure_step(measure, steps, variant, x, ways[variant], rounds=2)


@pytest.mark.benchmark(group="unet/residual")
@pytest.mark.parametrize("variant", ["ours", "monai"])
@pytest.mark.parametrize(("dims", "size"), [(2, 128), (3, 32)])
def test_residual_unet(dims, size, variant, measure):
    """Two residual networks of equal width; MONAI's resamples by strided convolutions."""
    widths = (16, 32, 64)
    model = UNet(1, 2, widths, spatial_dims=dims, block="residual", norm="instance", remember=False)
    ways = with_peer(
        {"ours": model.eval()}, {"monai": lambda: peers.monai_residual(dims, widths)}, variant
    )
    measure_forward(measure, ways, variant, torch.randn(1, 1, *(size,) * dims), 5, same=False)


def network_of(variant: str, model: UNet) -> nn.Module:
    """Return the network that runs the step of a variant, after checking its output."""
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


def steps_of(
    variant: str, model: UNet, x: Tensor
) -> tuple[dict[str, Callable[[], None]], nn.Module]:
    """Return the plain step, the step of the variant, and the network of the variant."""
    network = network_of(variant, model)
    step = partial(train_step, network, x, variant == CHECKPOINTING)
    return {"plain": partial(train_step, plain_way(model), x), variant: step}, network


@pytest.mark.benchmark(group="unet/train-step")
@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize("size", [64, 384, 1024])
def test_unet_train_step(size, variant, measure, request):
    if size == 1024:
        only_in_full(request)
    elif size == 384:
        only_when_timing(request)
    x = cube(size, 2)
    steps, network = steps_of(variant, ours(DEFAULT, 2), x)
    measure_step(measure, steps, variant, x, network, rounds=5 if size < 384 else 1)


@pytest.mark.headline
@pytest.mark.benchmark(group="memory/checkpointing")
@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize(("dims", "size"), [(2, 64), (2, 192), (3, 32)])
def test_memory_of_checkpointing(dims, size, variant, measure, request):
    if size == 192:
        only_when_timing(request)
    x = cube(size, dims)
    steps, network = steps_of(variant, ours(HALF if dims == 2 else SMALL, dims), x)
    measure_step(measure, steps, variant, x, network, rounds=3, resident=True)
