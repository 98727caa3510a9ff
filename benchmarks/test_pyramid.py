"""Feature pyramids against the plain modules and torchvision on the same encoder."""

import pytest
import torch

from benchmarks import plain
from benchmarks.paired import measure_forward
from neurenix_ms import PyramidFusion, PyramidNetwork

Ways = dict[str, torch.nn.Module]


def network(dims: int) -> Ways:
    base = 64 if dims == 2 else 16
    ours = PyramidNetwork(3, 4, base_channels=base, spatial_dims=dims, remember=False).eval()
    theirs = plain.PyramidNetwork(3, 4, ours.feature_channels, dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


def all_levels(dims: int) -> Ways:
    ours = PyramidNetwork(3, 64, return_pyramid=True, remember=False, spatial_dims=dims).eval()
    theirs = plain.TorchvisionPyramid(3, 64, ours.feature_channels).eval()
    pyramid = theirs.fusion.pyramid
    laterals = torch.nn.ModuleList(reversed(pyramid.inner_blocks))  # ours start with the coarsest
    plain.with_weights_of(
        ours, torch.nn.ModuleList([theirs.encoder, laterals, pyramid.layer_blocks])
    )
    return {"plain": theirs, "ours": ours}


def neck(dims: int) -> Ways:
    widths = [64, 128, 256, 512]
    ours = PyramidFusion(widths, 128, spatial_dims=dims).eval()
    return {
        "plain": plain.with_weights_of(ours, plain.TorchvisionFusion(widths, 128)),
        "ours": ours,
    }


@pytest.mark.benchmark(group="pyramid/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize(
    ("block", "dims", "size"),
    [
        ("PyramidNetwork", 2, 64),
        ("PyramidNetwork", 2, 256),
        ("PyramidNetwork", 3, 48),
        ("all levels", 2, 64),
        ("all levels", 2, 256),
        ("PyramidFusion", 2, 64),
    ],
)
def test_pyramid_forward(block, dims, size, variant, measure):
    if block == "PyramidFusion":
        ways = neck(dims)
        x = [
            torch.randn(1, n, size // 2**i, size // 2**i) for i, n in enumerate([64, 128, 256, 512])
        ]
    else:
        ways = network(dims) if block == "PyramidNetwork" else all_levels(dims)
        x = torch.randn(1, 3, *(size,) * dims)
    measure_forward(measure, ways, variant, x, rounds=5)
