"""UNet++ compared with plain PyTorch, MONAI and segmentation_models_pytorch."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import peers, plain, plain_nested
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_when_timing,
    train_step,
    with_peer,
)
from neurenix_ms import NestedUNet, NestedUNetDecoder

FEATURES = {1: (32, 32, 64, 128), 2: (16, 16, 32, 64), 3: (8, 8, 16, 32)}
CASES = [
    (dims, size, variant)
    for dims, size in [(1, 4096), (2, 64), (2, 128), (3, 32)]
    for variant in ["plain", "ours", "monai"]
]


def ways(dims: int, variant: str, training: bool) -> dict[str, nn.Module]:
    """Return our network, the plain one, and MONAI's if requested, with the same weights."""
    ours = NestedUNet(
        1,
        2,
        FEATURES[dims],
        spatial_dims=dims,
        up="transposed",
        norm="instance",
        act=partial(nn.LeakyReLU, peers.SLOPE, inplace=True),
        conv_bias=True,
    ).train(training)
    by_hand = plain.with_weights_of(ours, plain_nested.NestedUNet(ours, peers.SLOPE))
    found = {"plain": by_hand, "ours": ours}
    return with_peer(found, {"monai": partial(peers.monai_nested, ours)}, variant)


@pytest.mark.benchmark(group="nested/forward")
@pytest.mark.parametrize(("dims", "size", "variant"), CASES)
def test_nested_forward(dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    x = torch.randn(1, 1, *(size,) * dims)
    measure_forward(measure, ways(dims, variant, False), variant, x, rounds=5)


@pytest.mark.benchmark(group="nested/train-step")
@pytest.mark.parametrize(("dims", "size", "variant"), CASES)
def test_nested_train_step(dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    x = torch.randn(2, 1, *(size,) * dims)
    found = ways(dims, variant, True)
    with torch.no_grad():
        assert_equal(found[variant](x), found["plain"](x))
    steps = {name: partial(train_step, model, x) for name, model in found.items()}
    measure_step(measure, steps, variant, x, found[variant], rounds=3)


@pytest.mark.benchmark(group="nested/decoder")
@pytest.mark.parametrize("variant", ["ours", "smp"])
@pytest.mark.parametrize("size", [64])
def test_nested_decoder(size, variant, measure):
    widths = [64, 128, 256]
    ours = NestedUNetDecoder(widths, 2, up="nearest").eval()
    found = with_peer({"ours": ours}, {"smp": partial(peers.smp_nested, ours)}, variant)
    features = [torch.randn(1, n, size >> k, size >> k) for k, n in enumerate(widths)]
    measure_forward(measure, found, variant, features, rounds=5)
