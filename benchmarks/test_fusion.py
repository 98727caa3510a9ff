"""Fusions of four maps against projecting, resizing and reducing them by hand."""

import pytest
import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    only_when_timing,
    train_step,
)
from neurenix_ms import FeatureFusion

WIDTHS = [64, 128, 256, 512]
OUT = 256
PLAIN = {
    "concat": plain.ConcatFusion,
    "sum": plain.SumFusion,
    "attention": plain.AttentionFusion,
}
SIZES = [56, 224]  # of the finest map; every other one has half the edge of the one before


def maps(size: int) -> list[Tensor]:
    return [torch.randn(1, n, size // 2**i, size // 2**i) for i, n in enumerate(WIDTHS)]


def ways(method: str) -> dict[str, torch.nn.Module]:
    ours = FeatureFusion(WIDTHS, OUT, method)
    torch.nn.init.normal_(list(ours.parameters())[-1])  # scores that differ from source to source
    return {"plain": plain.with_weights_of(ours, PLAIN[method](WIDTHS, OUT)), "ours": ours}


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
    model = models[variant]

    def step() -> None:
        train_step(model, features)
        for x in features:
            x.grad = None

    measure(step, 1, model=model, x=features[0], rounds=10 if size < 224 else 2)
