"""Bidirectional necks compared with plain PyTorch and effdet: three layers, as in EfficientDet-D0."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, plain, plain_pyramids
from benchmarks.paired import (
    assert_equal,
    measure_forward,
    measure_step,
    only_when_timing,
    with_peer,
)
from neurenix_ms import BidirectionalFusion

WIDTHS = {1: [40, 112, 320], 2: [64] * 5, 3: [16, 32, 64]}
OUT = {1: 64, 2: 64, 3: 16}
REPEATS = 3
BLOCK = "BidirectionalFusion"
CASES = [
    (BLOCK, dims, size, variant)
    for dims, size, others in [
        (1, 4096, []),
        (2, 64, ["effdet"]),
        (2, 128, ["effdet"]),
        (3, 32, []),
    ]
    for variant in ["plain", "ours", *others]
]


def ways(dims: int, size: int, variant: str, training: bool) -> dict[str, nn.Module]:
    widths, out = WIDTHS[dims], OUT[dims]
    ours = BidirectionalFusion(widths, out, repeats=REPEATS, spatial_dims=dims).train(training)
    theirs = plain_pyramids.BidirectionalFusion(widths, out, REPEATS, dims)
    found = {"plain": plain.with_weights_of(ours, theirs), "ours": ours}
    return with_peer(found, {"effdet": partial(peers.effdet_neck, ours, (size, size))}, variant)


def maps(dims: int, size: int, batch: int) -> list[Tensor]:
    sizes = [(size // 2**i,) * dims for i in range(len(WIDTHS[dims]))]
    return [torch.randn(batch, n, *s) for n, s in zip(WIDTHS[dims], sizes, strict=True)]


@pytest.mark.benchmark(group="necks/forward")
@pytest.mark.parametrize(("block", "dims", "size", "variant"), CASES)
def test_necks_forward(block, dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    models = ways(dims, size, variant, training=False)
    measure_forward(measure, models, variant, maps(dims, size, 1), rounds=5)


@pytest.mark.benchmark(group="necks/train-step")
@pytest.mark.parametrize(("block", "dims", "size", "variant"), CASES)
def test_necks_train_step(block, dims, size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    models = ways(dims, size, variant, training=True)
    features = maps(dims, size, 2)
    with torch.no_grad():
        assert_equal(models[variant](features), models["plain"](features))

    def step(model: nn.Module) -> None:
        sum(y.square().mean() for y in model(features)).backward()
        model.zero_grad()

    steps = {name: partial(step, model) for name, model in models.items()}
    measure_step(measure, steps, variant, features[0], models[variant], rounds=3)
