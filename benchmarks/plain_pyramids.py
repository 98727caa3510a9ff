"""Feature pyramids, written the plain way and with torchvision's."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from benchmarks.plain import CONV, MAX_POOL, double_conv


class Encoder(nn.Module):
    """Blocks with a max pooling between them."""

    def __init__(self, in_channels: int, widths: Sequence[int], dims: int) -> None:
        super().__init__()
        pairs = pairwise([in_channels, *widths])
        self.blocks = nn.ModuleList(double_conv(a, b, dims, bias=False) for a, b in pairs)
        self.pool = MAX_POOL[dims](2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else self.pool(x))
            features.append(x)
        return features


class PyramidNetwork(nn.Module):
    """An encoder and the way down of a feature pyramid to its finest map."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, widths, dims)
        self.laterals = nn.ModuleList(CONV[dims](n, widths[0], 1) for n in reversed(widths))
        self.output = CONV[dims](widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        y = self.laterals[0](features[-1])
        for lateral, finer in zip(self.laterals[1:], reversed(features[:-1]), strict=True):
            y = lateral(finer) + F.interpolate(y, size=finer.shape[2:], mode="nearest")
        return self.output(y)


class PyramidFusion(nn.Module):
    """The way down of a feature pyramid, with an output per level."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, dims: int) -> None:
        super().__init__()
        conv = CONV[dims]
        self.laterals = nn.ModuleList(conv(n, out_channels, 1) for n in in_channels)
        self.outputs = nn.ModuleList(
            conv(out_channels, out_channels, 3, padding=1) for _ in in_channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        sums = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[2:], mode="nearest")
        return [output(x) for output, x in zip(self.outputs, sums, strict=True)]


class AllLevels(nn.Module):
    """An encoder and the way down of a feature pyramid, with an output per level."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, widths, dims)
        self.fusion = PyramidFusion(widths, out_channels, dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fusion(self.encoder(x))


class TorchvisionFusion(nn.Module):
    """torchvision's feature pyramid over a list."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), out_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        named = {str(i): x for i, x in enumerate(features)}
        return list(self.pyramid(named).values())


class TorchvisionPyramid(nn.Module):
    """An encoder and torchvision's feature pyramid, with an output per level."""

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, widths, 2)
        self.fusion = TorchvisionFusion(widths, out_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fusion(self.encoder(x))
