"""Blocks and gates of the slots of networks, written the plain way."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActivation(nn.Module):
    """Norm, activation, convolution, twice, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.relu(norm(y)))
        return x + y


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm with the channels last, two linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class Inverted(nn.Module):
    """A 1x1 convolution to six times the channels, a depthwise one, and one back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 6 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU(), nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Gate(nn.Module):
    """Weights of every pixel of a skip, from the skip and from what comes from below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.of_skip = nn.Sequential(nn.Conv2d(channels, half, 1), nn.BatchNorm2d(half))
        self.of_deep = nn.Sequential(nn.Conv2d(channels, half, 1), nn.BatchNorm2d(half))
        self.score = nn.Sequential(nn.Conv2d(half, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(F.relu(self.of_skip(x) + self.of_deep(x)))
        return torch.cat([x * weights, x], dim=1)


class Sum(nn.Module):
    """The sum of a skip and what comes from below."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return skip + deep


class Shuffle(nn.Sequential):
    """A convolution and `nn.PixelShuffle`."""

    def __init__(self, channels: int) -> None:
        conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        super().__init__(conv, nn.PixelShuffle(2))


class Synthesis(nn.Module):
    """A 1x1 convolution to four bands, and a transposed convolution with the Haar filters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        # of a band, the first axis is the lowest bit
        kernels = [signs[band & 1, :, None] * signs[band >> 1] / 2 for band in range(4)]
        self.kernel = torch.stack(kernels)[:, None]
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        bands = self.conv(x).unflatten(1, (4, self.channels)).transpose(1, 2).flatten(0, 1)
        y = F.conv_transpose2d(bands, self.kernel, stride=2)
        return y.unflatten(0, (-1, self.channels)).squeeze(2)


class TransposedNormAct(nn.Sequential):
    """A transposed convolution with overlapping windows, a norm, an activation."""

    def __init__(self, channels: int) -> None:
        up = nn.ConvTranspose2d(
            channels, channels, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        super().__init__(up, nn.BatchNorm2d(channels), nn.ReLU())
