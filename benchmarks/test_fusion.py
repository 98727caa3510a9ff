"""Fusion of four feature maps compared with plain PyTorch."""

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import peers, plain
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_when_timing,
    train_step,
    with_peer,
)
from neurenix_ms import AttentionFusion, FeatureFusion

WIDTHS = [64, 128, 256, 512]
OUT = 256
PLAIN = {
    "concat": plain.ConcatFusion,
    "sum": plain.SumFusion,
    "mean": plain.MeanFusion,
    "max": plain.MaxFusion,
    "attention": plain.AttentionFusion,
}
SIZES = [
    56,
    224,
]  # of the finest feature map; every further one is half as large
ALIKE = "attention, one size"


def maps(size: int) -> list[Tensor]:
    return [torch.randn(1, n, size // 2**i, size // 2**i) for i, n in enumerate(WIDTHS)]


def ways(method: str) -> dict[str, torch.nn.Module]:
    ours = FeatureFusion(WIDTHS, OUT, method)
    torch.nn.init.normal_(list(ours.parameters())[-1])  # scores that differ between sources
    return {"plain": plain.with_weights_of(ours, PLAIN[method](WIDTHS, OUT)), "ours": ours}


@pytest.mark.benchmark(group="fusion/forward")
@pytest.mark.parametrize("variant", ["plain", "ours", "timm"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [ALIKE])
def test_fusion_of_maps_of_one_size(method, size, variant, measure, request):
    """Attention fusion of two feature maps with 64 channels, as in a selective kernel network."""
    if size > SIZES[0]:
        only_when_timing(request)
    ours = AttentionFusion([64, 64], 64).eval()
    torch.nn.init.normal_(list(ours.parameters())[-2])
    theirs = plain.with_weights_of(ours, plain.AttentionFusion([64, 64], 64))
    ways = {"plain": theirs, "ours": ours}
    ways = with_peer(ways, {"timm": lambda: peers.TimmAttention(ours)}, variant)
    if variant == "timm":  # the peer has set our biases to zero
        plain.with_weights_of(ours, theirs)
    x = [torch.randn(1, 64, size, size) for _ in range(2)]
    measure_forward(measure, ways, variant, x, rounds=10 if size < 224 else 3)


@pytest.mark.benchmark(group="fusion/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", PLAIN)
def test_fusion_forward(method, size, variant, measure, request):
    if size > SIZES[0]:
        only_when_timing(request)
    models = {name: model.eval() for name, model in ways(method).items()}
    measure_forward(measure, models, variant, maps(size), rounds=10 if size < 224 else 3)


@pytest.mark.benchmark(group="fusion/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", PLAIN)
def test_fusion_train_step(method, size, variant, measure, request):
    if size > SIZES[0]:
        only_when_timing(request)
    models = ways(method)
    features = [x.requires_grad_() for x in maps(size)]
    with torch.no_grad():
        assert_equal(models["ours"](features), models["plain"](features))

    def step(model: torch.nn.Module) -> None:
        train_step(model, features)
        for x in features:
            x.grad = None

    steps = {name: partial(step, model) for name, model in models.items()}
    rounds = 10 if size < 224 else 2
    measure_step(measure, steps, variant, features[0], models[variant], rounds)
