"""Backbones and decoders compared with the libraries of the networks."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks import peers
from benchmarks.paired import measure_forward, only_when_timing, with_peer
from neurenix_ms import FeatureFusion, PyramidFusion, UNetDecoder
from neurenix_ms.backbones import Backbone
from neurenix_ms.layers.resize import Resize


@pytest.mark.benchmark(group="backbones/features")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("size", [64, 224])
def test_features(library, size, variant, measure, request):
    """Features of a ResNet; `plain` is the feature extractor of the library."""
    if size == 224:
        only_when_timing(request)
    if library == "torchvision":
        network = resnet18().eval()
        ours = Backbone(network, levels=[-4, -3, -2, -1]).eval()
        ways = {"plain": peers.torchvision_features(network), "ours": ours}
    else:
        ours, theirs = peers.timm_features("resnet18")
        ways = {"plain": theirs, "ours": ours}
    measure_forward(measure, ways, variant, torch.randn(1, 3, size, size), rounds=5)


class Decoded(nn.Module):
    """A backbone, a block that fuses its feature maps, and a resize to the size of the image."""

    def __init__(self, backbone: Backbone, decode: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode = decode
        self.resize = Resize("bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(self.decode(self.backbone(x)), x.shape[2:])


def unet() -> nn.Module:
    backbone = Backbone("resnet18")
    return Decoded(backbone, UNetDecoder(backbone, 2)).eval()


def fpn() -> nn.Module:
    backbone = Backbone("resnet18", levels=[-4, -3, -2, -1])
    fuse = FeatureFusion([256] * 4, 128, "concat")
    neck = nn.Sequential(PyramidFusion(backbone, 256), fuse, nn.Conv2d(128, 2, 1))
    return Decoded(backbone, neck).eval()


@pytest.mark.benchmark(group="backbones/segmentation")
@pytest.mark.parametrize("variant", ["ours", "smp"])
@pytest.mark.parametrize("network", ["U-Net", "FPN"])
@pytest.mark.parametrize("size", [64, 256])
def test_segmentation(network, size, variant, measure, request):
    """A ResNet-18 with one of our decoders, and with a similar one of another library."""
    if size == 256:
        only_when_timing(request)
    make, peer = (unet, peers.smp_unet) if network == "U-Net" else (fpn, peers.smp_fpn)
    ways = with_peer({"ours": make()}, {"smp": peer}, variant)
    measure_forward(measure, ways, variant, torch.randn(1, 3, size, size), rounds=3, same=False)
