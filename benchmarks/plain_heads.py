"""Decoders over lists of feature maps, written the plain way."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.plain import BATCH_NORM, CONV, PyramidPooling, pooled_branches, resized


def layer(in_channels: int, out_channels: int, kernel: int, dims: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    conv = CONV[dims](in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, BATCH_NORM[dims](out_channels), nn.ReLU(inplace=True))


class UPerHead(nn.Module):
    """Pyramid pooling, a feature pyramid, all levels enlarged, concatenated and convolved."""

    def __init__(self, widths: Sequence[int], out_channels: int, hidden: int, dims: int) -> None:
        super().__init__()
        bins = (1, 2, 3, 6)
        self.context = PyramidPooling(widths[-1], hidden, bins, dims)
        self.context.branches = pooled_branches(widths[-1], hidden, bins, dims)
        joined = widths[-1] + len(bins) * hidden
        self.context.projection = layer(joined, hidden, 3, dims)
        convolve = partial(layer, out_channels=hidden, dims=dims)
        self.laterals = nn.ModuleList(convolve(n, kernel=1) for n in widths[:-1])
        self.smooth = nn.ModuleList(convolve(hidden, kernel=3) for _ in widths[:-1])
        self.fuse = layer(len(widths) * hidden, hidden, 3, dims)
        self.head = CONV[dims](hidden, out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        levels = [self.context(features[-1])]
        for x, lateral in zip(features[-2::-1], list(self.laterals)[::-1], strict=True):
            y = lateral(x)
            levels.insert(0, resized(levels[0], y.shape[2:]) + y)
        size = levels[0].shape[2:]
        maps = [smooth(y) for smooth, y in zip(self.smooth, levels[:-1], strict=True)]
        stacked = torch.cat([resized(y, size) for y in [*maps, levels[-1]]], dim=1)
        return self.head(self.fuse(stacked))
