"""Plain implementations of feature pyramids, also with torchvision."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from benchmarks.plain import BATCH_NORM, CONV, MAX_POOL, double_conv


class Encoder(nn.Module):
    """Blocks with max pooling between them."""

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
    """An encoder and the top-down path of a feature pyramid to its finest level."""

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
    """The top-down path of a feature pyramid, with an output per level."""

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


class FusedNode(nn.Module):
    """Weighted sum of the inputs, then SiLU, a separable convolution and a norm."""

    def __init__(self, num_inputs: int, channels: int, dims: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        conv = CONV[dims]
        self.depthwise = conv(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.point = conv(channels, channels, 1, bias=False)
        self.norm = BATCH_NORM[dims](channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        y = sum(w * x for w, x in zip(weights, inputs, strict=True))
        return self.norm(self.point(self.depthwise(F.silu(y))))


class BidirectionalLayer(nn.Module):
    """One layer of a BiFPN, with a projection per level."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, dims: int) -> None:
        super().__init__()
        top = len(in_channels) - 1
        self.enter = nn.ModuleList(
            nn.Identity()
            if n == out_channels
            else nn.Sequential(
                CONV[dims](n, out_channels, 1, bias=False), BATCH_NORM[dims](out_channels)
            )
            for n in in_channels
        )
        self.inner = nn.ModuleList(FusedNode(2, out_channels, dims) for _ in range(top))
        self.outer = nn.ModuleList(
            FusedNode(3 if k < top else 2, out_channels, dims) for k in range(1, top + 1)
        )
        self.pool = MAX_POOL[dims](3, 2, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        own = [enter(x) for enter, x in zip(self.enter, features, strict=True)]
        between = [own[-1]]
        for k in reversed(range(len(own) - 1)):
            coarse = F.interpolate(between[0], size=own[k].shape[2:], mode="nearest")
            between.insert(0, self.inner[k](own[k], coarse))
        results = [between[0]]
        for k in range(1, len(own)):
            inputs = [own[k], between[k]] if k < len(own) - 1 else [own[k]]
            results.append(self.outer[k - 1](*inputs, self.pool(results[-1])))
        return results


class BidirectionalFusion(nn.Module):
    """A BiFPN."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, repeats: int, dims: int
    ) -> None:
        super().__init__()
        widths = [in_channels] + [[out_channels] * len(in_channels)] * (repeats - 1)
        self.layers = nn.ModuleList(BidirectionalLayer(w, out_channels, dims) for w in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        for layer in self.layers:
            features = layer(features)
        return list(features)


class AllLevels(nn.Module):
    """An encoder and the top-down path of a feature pyramid, with an output per level."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, widths, dims)
        self.fusion = PyramidFusion(widths, out_channels, dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fusion(self.encoder(x))


class TorchvisionFusion(nn.Module):
    """torchvision's feature pyramid with a list of feature maps as input."""

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
