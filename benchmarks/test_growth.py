"""Growth of cost with pixels, levels, scales and channels."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.paired import only_in_full
from neurenix_ms import FeatureFusion, PyramidNetwork, UNet
from neurenix_ms.msnet import MSNet, coarsen, scale_masks


def forward(model: nn.Module, *x: object) -> None:
    with torch.no_grad():
        model(*x)


def network(variant: str, width: int = 16, levels: int = 3, dims: int = 2) -> nn.Module:
    """Return a U-Net or a pyramid network with one channel and widths that double per level."""
    options = {"spatial_dims": dims, "remember": False}
    if variant == "UNet":
        return UNet(1, 1, [width * 2**i for i in range(levels)], **options).eval()
    return PyramidNetwork(1, 1, levels, width, **options).eval()


@pytest.mark.benchmark(group="growth/cells")
@pytest.mark.parametrize("edge", [64, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("variant", ["UNet", "PyramidNetwork"])
def test_cells(variant, edge, measure, request):
    """2-D images; time and peak memory should grow linearly with the number of pixels."""
    if edge > 512:
        only_in_full(request)
    model = network(variant)
    x = torch.randn(1, 1, edge, edge)
    measure(partial(forward, model, x), edge**2, model=model, x=x, rounds=3)


@pytest.mark.benchmark(group="growth/cells of a signal")
@pytest.mark.parametrize("length", [2**10, 2**12, 2**14, 2**16, 2**18])
@pytest.mark.parametrize("variant", ["UNet", "PyramidNetwork"])
def test_cells_of_a_signal(variant, length, measure, request):
    if length > 2**16:
        only_in_full(request)
    model = network(variant, dims=1)
    x = torch.randn(1, 1, length)
    measure(partial(forward, model, x), length, model=model, x=x, rounds=3)


@pytest.mark.benchmark(group="growth/cells of a volume")
@pytest.mark.parametrize("edge", [32, 48, 64, 96, 128, 192])
@pytest.mark.parametrize("variant", ["UNet", "MSNet"])
def test_cells_of_a_volume(variant, edge, measure, request):
    if edge > 64:
        only_in_full(request)
    model = (network(variant, 8, dims=3) if variant == "UNet" else MSNet(3)).eval()
    x = (torch.rand(1, 1, edge, edge, edge) < 0.5).float()
    inputs = (x,) if variant == "UNet" else (coarsen(x, 3), scale_masks(x, 3))
    measure(partial(forward, model, *inputs), edge**3, model=model, x=x, rounds=3)


@pytest.mark.benchmark(group="growth/levels")
@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("variant", ["UNet", "PyramidNetwork"])
def test_levels(variant, levels, measure):
    """Every level has twice the channels and a quarter of the pixels of the previous one."""
    model = network(variant, levels=levels)
    x = torch.randn(1, 1, 128, 128)
    measure(partial(forward, model, x), 1, model=model, x=x, rounds=5)


@pytest.mark.benchmark(group="growth/scales")
@pytest.mark.parametrize("scales", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["MSNet", "FeatureFusion"])
def test_scales(variant, scales, measure):
    if variant == "MSNet":
        model: nn.Module = MSNet(scales).eval()
        x = (torch.rand(1, 1, 48, 48, 48) < 0.5).float()
        inputs = coarsen(x, scales), scale_masks(x, scales)
    else:
        model = FeatureFusion([32] * scales, 32).eval()
        x = torch.randn(1, 32, 128, 128)
        inputs = ([torch.randn(1, 32, 128 // 2**i, 128 // 2**i) for i in range(scales)],)
    measure(partial(forward, model, *inputs), 1, model=model, x=x, rounds=5)


@pytest.mark.benchmark(group="growth/channels")
@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("variant", ["UNet", "PyramidNetwork"])
def test_channels(variant, width, measure):
    """Channels of the finest level; FLOPs grow with their square."""
    model = network(variant, width)
    x = torch.randn(1, 1, 128, 128)
    measure(partial(forward, model, x), 1, model=model, x=x, rounds=5)
