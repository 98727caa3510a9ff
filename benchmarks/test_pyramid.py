"""Feature pyramids compared with plain PyTorch and torchvision on the same encoder."""

import pytest
import torch

from benchmarks import peers, plain, plain_pyramids
from benchmarks.paired import measure_forward, only_in_full, with_peer
from neurenix_ms import PyramidFusion, PyramidNetwork

Ways = dict[str, torch.nn.Module]
WIDTHS = {1: [64, 128, 256, 512], 2: [64, 128, 256, 512], 3: [16, 32, 64]}


def network(dims: int) -> Ways:
    base = 16 if dims == 3 else 64
    ours = PyramidNetwork(3, 4, base_channels=base, spatial_dims=dims, remember=False).eval()
    theirs = plain_pyramids.PyramidNetwork(3, 4, ours.feature_channels, dims)
    return {"plain": plain.with_weights_of(ours, theirs), "ours": ours}


def all_levels(dims: int) -> Ways:
    ours = PyramidNetwork(3, 64, return_pyramid=True, remember=False, spatial_dims=dims).eval()
    theirs = plain_pyramids.TorchvisionPyramid(3, 64, ours.feature_channels).eval()
    pyramid = theirs.fusion.pyramid
    laterals = torch.nn.ModuleList(reversed(pyramid.inner_blocks))  # ours are coarsest first
    plain.with_weights_of(
        ours, torch.nn.ModuleList([theirs.encoder, laterals, pyramid.layer_blocks])
    )
    by_hand = plain_pyramids.AllLevels(3, 64, ours.feature_channels, dims)
    by_hand = plain.with_weights_of(theirs, by_hand)
    return {"torchvision": theirs, "plain": by_hand, "ours": ours}


def neck(dims: int) -> Ways:
    widths = WIDTHS[dims]
    ours = PyramidFusion(widths, 128, spatial_dims=dims).eval()
    return {
        "plain": plain.with_weights_of(ours, plain_pyramids.PyramidFusion(widths, 128, dims)),
        "ours": ours,
    }


def neck_of(variant: str, dims: int) -> Ways:
    """Return our neck, the plain neck, and the requested peer."""
    ways = neck(dims)
    necks = {
        "torchvision": lambda: peers.torchvision_neck(ways["ours"]),
        "monai": lambda: peers.monai_neck(ways["ours"]),
    }
    return with_peer(ways, necks, variant)


@pytest.mark.benchmark(group="pyramid/forward")
@pytest.mark.parametrize(
    ("block", "dims", "size", "variant"),
    [
        (block, dims, size, variant)
        for block, dims, size, peers_of_it in [
            ("PyramidNetwork", 1, 512, []),
            ("PyramidNetwork", 2, 64, []),
            ("PyramidNetwork", 2, 256, []),
            ("PyramidNetwork", 3, 48, []),
            ("PyramidNetwork", 1, 2**17, []),
            ("PyramidNetwork", 2, 1024, []),
            ("PyramidNetwork", 3, 128, []),
            ("all levels", 2, 64, ["torchvision"]),
            ("all levels", 2, 256, ["torchvision"]),
            ("PyramidFusion", 1, 512, ["monai"]),
            ("PyramidFusion", 2, 64, ["torchvision", "monai"]),
            ("PyramidFusion", 2, 256, ["torchvision", "monai"]),
            ("PyramidFusion", 3, 32, ["monai"]),
        ]
        for variant in ["plain", "ours", *peers_of_it]
    ],
)
def test_pyramid_forward(block, dims, size, variant, measure, request):
    if size in (2**17, 1024, 128):
        only_in_full(request)
    if block == "PyramidFusion":
        ways = neck_of(variant, dims)
        x = [torch.randn(1, n, *(size // 2**i,) * dims) for i, n in enumerate(WIDTHS[dims])]
    else:
        ways = network(dims) if block == "PyramidNetwork" else all_levels(dims)
        x = torch.randn(1, 3, *(size,) * dims)
    measure_forward(measure, ways, variant, x, rounds=5)
