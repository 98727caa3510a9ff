"""Lists of feature maps in the wrong order, or with a missing level, raise with their sizes."""

import pytest
import torch
from torch import nn

from neurenix_ms import LaplacianPyramid, PyramidFusion, PyramidNetwork, ScaleFusion, UNetDecoder
from neurenix_ms.training import DeepSupervisionLoss, MultiScaleLoss


def maps(*sizes, channels=2):
    return [torch.randn(1, channels, *size) for size in sizes]


def reconstruct(levels):
    return LaplacianPyramid(len(levels)).reconstruct(levels)


def decoded(features):
    return UNetDecoder([2] * len(features), 1).eval()(features)


def fused(features):
    return PyramidFusion([2] * len(features), 2)(features)


def by_scales(*scales):
    return lambda features: ScaleFusion(scales, 2, 2)(features)


def supervised(outputs):
    return DeepSupervisionLoss(nn.MSELoss())(outputs, torch.zeros(1, 2, 32, 32))


def compared(outputs):
    return MultiScaleLoss()(outputs, [torch.zeros_like(y) for y in outputs])


HALVES = r"must come finest first, each about half the size of the one before, got sizes "


@pytest.mark.parametrize(
    ("call", "sizes", "message"),
    [
        (decoded, [(8, 8), (16, 16), (32, 32)], HALVES + r"\[\(8, 8\), \(16, 16\), \(32, 32\)\]"),
        (decoded, [(32, 32), (8, 8)], "features " + HALVES + r"\[\(32, 32\), \(8, 8\)\]"),
        (decoded, [(32, 32), (16, 32)], HALVES + r"\[\(32, 32\), \(16, 32\)\]"),
        (decoded, [(1, 1), (2, 2)], HALVES),
        (decoded, [(5, 5), (4, 4)], HALVES),
        (reconstruct, [(8, 8), (16, 16), (32, 32)], "levels " + HALVES),
        (reconstruct, [(32, 32), (8, 8)], HALVES),
        (fused, [(8, 8), (16, 16)], r"features must come finest first, got sizes \[\(8, 8\), \(16"),
        (
            by_scales(1.0, 0.5, 0.25),
            [(8, 8), (16, 16), (32, 32)],
            r"in the order of the scales \[1.0, 0.5, 0.25\], got sizes \[\(8, 8\), \(16",
        ),
        (by_scales(0.5, 1.0), [(32, 32), (16, 16)], r"order of the scales \[0.5, 1.0\], got sizes"),
        (
            supervised,
            [(8, 8), (16, 16), (32, 32)],
            r"outputs without weights must come finest first, got sizes \[\(8, 8\), \(16",
        ),
        (
            compared,
            [(32, 32), (16, 16)],
            r"outputs must come coarsest first, got sizes \[\(32, 32\), \(16, 16\)\]",
        ),
    ],
)
def test_a_wrong_order_raises_with_the_sizes(call, sizes, message):
    with pytest.raises(ValueError, match=message):
        call(maps(*sizes))


@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        (decoded, [(75, 61), (38, 31), (19, 16)]),  # rounded up
        (decoded, [(75, 61), (37, 30), (18, 15)]),  # rounded down
        (decoded, [(5, 3), (2, 1), (1, 1)]),
        (decoded, [(2, 2), (1, 1), (1, 1), (1, 1)]),
        (decoded, [(147, 147), (71, 71), (35, 35), (17, 17), (8, 8)]),  # without padding
        (reconstruct, [(9, 6), (5, 3), (3, 2), (2, 1)]),
        (fused, [(32, 32), (8, 8), (8, 8), (5, 1)]),
        (by_scales(0.5, 1.0, 0.25), [(16, 15), (32, 30), (8, 8)]),
        (by_scales(1.0, 1.0), [(16, 16), (32, 32)]),
        (supervised, [(32, 32), (32, 32), (4, 4)]),
        (compared, [(4, 4), (16, 16), (32, 32)]),
    ],
)
def test_sizes_that_belong_together_are_taken(call, sizes):
    call(maps(*sizes))


def test_weights_determine_the_order():
    outputs = maps((8, 8), (32, 32))
    loss = DeepSupervisionLoss(nn.MSELoss(), weights=[1, 2])
    assert loss(outputs, torch.zeros(1, 2, 32, 32)).isfinite()


def test_levels_of_other_channels_raise():
    with pytest.raises(
        ValueError, match=r"one batch size and number of channels, got .*1, 2, 4, 4"
    ):
        LaplacianPyramid(2).reconstruct([torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)])
    with pytest.raises(ValueError, match=r"2 spatial axes, got shape \(1, 8, 8\)"):
        LaplacianPyramid(1).reconstruct([torch.zeros(1, 8, 8)])


@pytest.mark.parametrize("size", [(64, 48), (33, 47), (17, 16)])
def test_networks_and_losses_of_the_library_fit_each_other(size):
    network = PyramidNetwork(2, 2, 3, 4, return_pyramid=True)
    pyramid = network(torch.randn(1, 2, *size))
    assert DeepSupervisionLoss(nn.MSELoss())(pyramid, torch.zeros(1, 2, *size)).isfinite()
    assert decoded([y.detach() for y in pyramid]).shape[2:] == size
