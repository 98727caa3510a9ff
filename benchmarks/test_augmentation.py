"""Rescaled crops compared with torchvision, which rescales the whole image before it crops."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.paired import measure_forward
from neurenix_ms.datasets import RandomScaledCrop


def torchvision_way(factor: float, crop: int):
    """Return rescaling of the whole, and the crop in its first corner."""

    def call(x: Tensor) -> Tensor:
        size = [round(n * factor) for n in x.shape[1:]]
        return v2.functional.resize(x, size, antialias=True)[:, :crop, :crop].contiguous()

    return call


class FirstCorner(RandomScaledCrop):
    """The crop in the first corner."""

    def _drawn(self, spatial, edges):
        windows = super()._drawn(spatial, edges)
        return [(rescaled, 0, edge) for rescaled, _, edge in windows]


@pytest.mark.benchmark(group="augmentation/scaled-crop")
@pytest.mark.parametrize("variant", ["torchvision", "ours"])
@pytest.mark.parametrize(("size", "crop", "factor"), [(256, 192, 1.5), (256, 96, 0.6)])
def test_scaled_crop(size, crop, factor, variant, measure):
    ways = {
        "ours": FirstCorner(crop, (factor, factor)),
        "torchvision": torchvision_way(factor, crop),
    }
    measure_forward(measure, ways, variant, torch.rand(3, size, size), rounds=20)
