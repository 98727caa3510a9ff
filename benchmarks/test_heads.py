"""Decoders of UPerNet and DeepLab against the plain way and segmentation_models_pytorch."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, plain, plain_heads
from benchmarks.paired import assert_equal, measure_forward, measure_step, with_peer
from neurenix_ms import DeepLabHead, UPerHead

WIDTHS = {1: [32, 64, 128], 2: [64, 128, 256, 512], 3: [8, 16, 32]}
HIDDEN = {1: 32, 2: 64, 3: 8}
# axes, edge of the finest feature map, variants
SIZES = [
    (1, 2048, ("plain", "ours")),
    (2, 48, ("plain", "ours", "smp")),
    (3, 24, ("plain", "ours")),
]
CASES = [(*case, variant) for *case, variants in SIZES for variant in variants]


def ways(dims: int, variant: str) -> dict[str, nn.Module]:
    widths, hidden = WIDTHS[dims], HIDDEN[dims]
    ours = UPerHead(widths, 2, hidden_channels=hidden, spatial_dims=dims).eval()
    theirs = plain.with_weights_of(ours, plain_heads.UPerHead(widths, 2, hidden, dims))
    return with_peer(
        {"plain": theirs, "ours": ours}, {"smp": partial(peers.smp_upernet, ours)}, variant
    )


def maps(dims: int, size: int, batch: int) -> list[Tensor]:
    return [torch.randn(batch, n, *(size >> k,) * dims) for k, n in enumerate(WIDTHS[dims])]


@pytest.mark.benchmark(group="heads/forward")
@pytest.mark.parametrize(("dims", "size", "variant"), CASES)
def test_heads_forward(dims, size, variant, measure):
    measure_forward(measure, ways(dims, variant), variant, maps(dims, size, 1), rounds=5)


@pytest.mark.benchmark(group="heads/train-step")
@pytest.mark.parametrize(("dims", "size", "variant"), [case for case in CASES if case[-1] != "smp"])
def test_heads_train_step(dims, size, variant, measure):
    features, found = maps(dims, size, 2), ways(dims, variant)
    with torch.no_grad():
        assert_equal(found[variant](features), found["plain"](features))

    def step(model: nn.Module) -> None:
        model.train()
        model(features).square().mean().backward()
        model.zero_grad()

    steps = {name: partial(step, model) for name, model in found.items()}
    measure_step(measure, steps, variant, features[0], found[variant], rounds=3)


@pytest.mark.benchmark(group="heads/deeplab")
@pytest.mark.parametrize("variant", ["ours", "smp"])
@pytest.mark.parametrize("size", [64])
def test_deeplab_forward(size, variant, measure):
    ours = DeepLabHead([64, 512], 2, hidden_channels=64, align_corners=True).eval()
    found = with_peer({"ours": ours}, {"smp": partial(peers.smp_deeplab, ours)}, variant)
    features = [torch.randn(1, 64, size, size), torch.randn(1, 512, size // 4, size // 4)]
    measure_forward(measure, found, variant, features, rounds=5)
