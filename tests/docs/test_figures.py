"""Bytes and FLOPs published in the benchmarks hold in every build."""

from functools import partial

import pytest
import torch

from benchmarks import plain, test_fusion, test_pooling, test_pyramid, test_transforms
from benchmarks.paired import train_step
from neurenix_ms import UNet
from neurenix_ms.meter import count_flops, peak_tensor_bytes


@pytest.fixture(autouse=True)
def _one_thread():
    """Bytes and operations do not depend on it, and two threads only wait for each other here."""
    torch.set_num_threads(1)


def assert_no_more_than_the_plain_way(ways, x):
    calls = [partial(ways[name], x) for name in ("ours", "plain")]
    with torch.no_grad():
        flops, theirs = (count_flops(call) for call in calls)
        peak, their_peak = (peak_tensor_bytes(call) for call in calls)
    assert flops <= theirs
    assert peak <= their_peak


def image(dims, channels=3, size=32):
    return torch.randn(1, channels, *(size,) * dims)


def unets(dims, run=plain.call, features=(4, 8, 8)):
    ours = UNet(3, 1, features, spatial_dims=dims, remember=False).eval()
    theirs = plain.UNet(3, 1, features, dims, run)
    return {"ours": ours, "plain": plain.with_weights_of(ours, theirs)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_unet(dims, training):
    ways = unets(dims)
    for model in ways.values():
        model.train(training)
    assert_no_more_than_the_plain_way(ways, image(dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_training_step_of_a_unet(dims):
    x = image(dims)
    steps = [partial(train_step, model.train(), x) for model in unets(dims).values()]
    ours, theirs = (peak_tensor_bytes(step) for step in steps)
    assert ours <= theirs
    ours, theirs = (count_flops(step) for step in steps)
    assert ours == theirs


def test_checkpointing_needs_less_memory_and_flops_than_that_of_whole_blocks():
    x = image(2, size=96)
    models = unets(2, plain.call_checkpointed, features=(8, 16, 32)).values()
    ours, blocks = (model.train() for model in models)
    steps = [partial(train_step, ours, x, True), partial(train_step, blocks, x)]
    peak, their_peak = (peak_tensor_bytes(step) for step in steps)
    assert peak < their_peak
    flops, theirs = (count_flops(step) for step in steps)
    assert 1.3 * flops < theirs


@pytest.mark.parametrize("dims", [2, 3])
def test_a_pyramid_network(dims):
    assert_no_more_than_the_plain_way(test_pyramid.network(dims), image(dims, size=16))


def test_a_pyramid_network_with_an_output_per_level_takes_less_than_torchvisions():
    ways = test_pyramid.all_levels(2)
    assert_no_more_than_the_plain_way({**ways, "plain": ways["torchvision"]}, image(2))


def test_a_pyramid_fusion():
    widths = [64, 128, 256, 512]
    maps = [torch.randn(1, n, 16 // 2**i, 16 // 2**i) for i, n in enumerate(widths)]
    assert_no_more_than_the_plain_way(test_pyramid.neck(2), maps)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "name",
    [
        "MultiScalePooling avg",
        "MultiScalePooling max",
        "SpatialPyramidPooling",
        "PyramidPooling",
    ],
)
def test_a_pooling(name, dims):
    x = image(dims, channels=64 if dims == 2 else 16)
    assert_no_more_than_the_plain_way(test_pooling.MAKERS[name](dims), x)


def test_pyramid_pooling_halves_the_flops_and_never_builds_the_concatenated_tensor():
    ways, x = test_pooling.MAKERS["PyramidPooling"](2), image(2, channels=64, size=96)
    with torch.no_grad():
        flops, theirs = (count_flops(partial(ways[name], x)) for name in ("ours", "plain"))
        peak, their_peak = (peak_tensor_bytes(partial(ways[name], x)) for name in ("ours", "plain"))
    assert flops <= 0.51 * theirs
    assert peak <= 0.45 * their_peak


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["MultiScaleTransform", "PyramidDownsample"])
def test_a_transform(name, dims):
    assert_no_more_than_the_plain_way(test_transforms.MAKERS[name](dims), image(dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_gaussian_pyramid_takes_no_more_than_depthwise_convolutions_per_axis(dims):
    ways = test_transforms.gaussian(dims)
    x = image(dims)
    ours, theirs = (peak_tensor_bytes(lambda n=n: ways[n](x)) for n in ("ours", "plain, per axis"))
    assert ours <= theirs


@pytest.mark.parametrize("method", ["sum", "attention"])
def test_a_fusion(method):
    models = {name: model.eval() for name, model in test_fusion.ways(method).items()}
    assert_no_more_than_the_plain_way(models, test_fusion.maps(32))
