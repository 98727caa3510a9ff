"""Seven networks with nearly the same number of parameters: six over one backbone, and HRNet."""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from neurenix_ms import (
    BidirectionalFusion,
    DeepLabHead,
    FeatureFusion,
    HighResolutionNetwork,
    NestedUNetDecoder,
    PyramidFusion,
    UNet,
    UNetDecoder,
    UPerHead,
)
from neurenix_ms.backbones import Backbone
from neurenix_ms.meter import parameter_table

WIDTHS = [8, 16, 32, 64]  # of the backbone; strides 1, 2, 4, 8


class Network(nn.Module):
    """The encoder of a U-Net, and what turns its feature maps into one output per pixel.

    Shape:
        `(B, 1, *S)` -> `(B, 1, *S)`
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        encoder = UNet(1, 1, WIDTHS[:-1], bottleneck_channels=WIDTHS[-1], remember=False)
        self.backbone = Backbone(encoder)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(self.backbone(x)))


def fused(neck: nn.Module, width: int) -> nn.Module:
    """Return a neck, the fusion of its levels at the finest size, and a 1x1 convolution."""
    fusion = FeatureFusion([width] * len(WIDTHS), width, "sum")
    return nn.Sequential(neck, fusion, nn.Conv2d(width, 1, 1))


# by a number that sets the width
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "UNetDecoder": lambda _: Network(UNetDecoder(WIDTHS, 1)),
    "NestedUNetDecoder": lambda _: Network(NestedUNetDecoder(WIDTHS, 1)),
    "PyramidFusion": lambda n: Network(fused(PyramidFusion(WIDTHS, n), n)),
    "BidirectionalFusion": lambda n: Network(
        fused(BidirectionalFusion(WIDTHS, n, separable=False), n)
    ),
    "UPerHead": lambda n: Network(UPerHead(WIDTHS, 1, hidden_channels=n)),
    "DeepLabHead": lambda n: Network(
        DeepLabHead(
            WIDTHS, 1, hidden_channels=n, dilations=[2, 4], fine_channels=8, separable=False
        )
    ),
    "HighResolutionNetwork": lambda n: HighResolutionNetwork(
        1, 1, [n, 2 * n, 4 * n, 8 * n], stem_reductions=0, depth=1
    ),
}
# with which all have nearly the same number of parameters; the first two have those of the backbone
CHOSEN = {
    "UNetDecoder": 0,
    "NestedUNetDecoder": 0,
    "PyramidFusion": 38,
    "BidirectionalFusion": 32,
    "UPerHead": 20,
    "DeepLabHead": 28,
    "HighResolutionNetwork": 7,
}


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return parameter_table(model)[-1][1]
