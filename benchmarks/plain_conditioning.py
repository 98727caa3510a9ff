"""A U-Net that is conditioned on a vector, written the plain way."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import BATCH_NORM, CONV, LINEAR, MAX_POOL


class Block(nn.Module):
    """Convolution, batch norm, FiLM and ReLU, twice."""

    def __init__(self, channels: Sequence[int], condition_channels: int, dims: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.convs = nn.ModuleList(CONV[dims](a, b, 3, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(BATCH_NORM[dims](b) for _, b in pairs)
        self.films = nn.ModuleList(nn.Linear(condition_channels, 2 * b) for _, b in pairs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
            x = norm(conv(x))
            gamma, beta = film(condition).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            x = F.relu(x * (1 + gamma) + beta, inplace=True)
        return x


class UNet(nn.Module):
    """A U-Net as it is usually written, of such blocks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        condition_channels: int,
        dims: int,
    ) -> None:
        super().__init__()
        widths = [in_channels, *features, features[-1]]
        k = condition_channels
        self.downs = nn.ModuleList(Block([a, b, b], k, dims) for a, b in pairwise(widths))
        self.pool = MAX_POOL[dims](2)
        self.up = nn.Upsample(scale_factor=2, mode=LINEAR[dims], align_corners=False)
        self.ups = nn.ModuleList()
        deep = features[-1]
        for depth in reversed(range(len(features))):
            out = features[max(depth - 1, 0)]
            joined = features[depth] + deep
            self.ups.append(Block([joined, joined // 2, out], k, dims))
            deep = out
        self.head = CONV[dims](features[0], out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        skips = []
        for down in self.downs[:-1]:
            x = down(x, condition)
            skips.append(x)
            x = self.pool(x)
        x = self.downs[-1](x, condition)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(torch.cat([skip, self.up(x)], dim=1), condition)
        return self.head(x)


def with_values_of(ours: nn.Module, plain: UNet) -> UNet:
    """Return `plain` with the values of a conditioned `UNet` of this package."""
    values = [block_values(block) for block in blocks_of(ours)]
    for block, (convs, norms, films) in zip([*plain.downs, *plain.ups], values, strict=True):
        for mine, theirs in ((block.convs, convs), (block.norms, norms), (block.films, films)):
            for a, b in zip(mine, theirs, strict=True):
                a.load_state_dict(b.state_dict())
    plain.head.load_state_dict(ours.head.conv.state_dict())
    return plain.train(ours.training)


def blocks_of(ours: nn.Module) -> list[nn.Module]:
    """Return the blocks of the encoder, finest first, and those of the decoder, coarsest first."""
    levels = [ours.level]
    while levels[-1].inner is not None:
        levels.append(levels[-1].inner)
    decoders = [level.decode.block for level in reversed(levels[:-1])]
    return [*(level.encode for level in levels), *decoders]


def block_values(block: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Return convolutions, norms and linear maps of a block."""
    layers = list(block.layers)
    return [y.conv for y in layers], [y.norm for y in layers], [y.film for y in layers]
