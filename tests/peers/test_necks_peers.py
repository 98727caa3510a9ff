"""BidirectionalFusion equals effdet where the sizes divide, and also works where effdet fails."""

import pytest
import torch

from benchmarks.peers import EffdetNeck, effdet_neck
from neurenix_ms import BidirectionalFusion

pytest.importorskip("effdet")
WIDTHS = [24, 40, 112]


def maps(size, widths, up=True):
    features = []
    for c in widths:
        features.append(torch.randn(2, c, *size))
        size = tuple((n + up) // 2 for n in size)
    return features


def scrambled(neck: BidirectionalFusion) -> BidirectionalFusion:
    with torch.no_grad():
        for value in [*neck.parameters(), *neck.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value).abs())
    return neck


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"repeats": 2, "extra_levels": 2}, (64, 48)),
        ({"weighting": "softmax", "separable": False}, (32, 32)),
        ({"weighting": None, "extra_levels": 1}, (61, 45)),
        ({"weighting": None, "paths": "panet", "repeats": 2}, (48, 64)),
    ],
)
def test_values_and_gradients_are_those_of_effdet(options, size, training):
    ours = BidirectionalFusion(WIDTHS, 16, projection="edge", **options).train(training)
    theirs = effdet_neck(scrambled(ours), size)
    count = [sum(p.numel() for p in neck.parameters()) for neck in (ours, theirs)]
    assert count[0] == count[1]
    features = [x.requires_grad_() for x in maps(size, WIDTHS)]
    found, wanted = ours(features), theirs(features)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    slopes = [
        torch.autograd.grad(sum(y.square().mean() for y in out), features)
        for out in (found, wanted)
    ]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_sizes_that_effdet_does_not_take():
    ours = BidirectionalFusion(WIDTHS, 16).eval()
    theirs = EffdetNeck(ours, (64, 64)).eval()
    features = maps((53, 37), WIDTHS, up=False)  # rounded down, and not the size it was built for
    with pytest.raises(RuntimeError, match="expects each tensor to be equal size"):
        theirs(features)
    assert [y.shape[2:] for y in ours(features)] == [x.shape[2:] for x in features]
