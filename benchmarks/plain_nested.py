"""A nested U-Net, written the plain way."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain import CONV, INSTANCE_NORM, MAX_POOL, TRANSPOSED


class NestedUNet(nn.Module):
    """UNet++ with transposed convolutions, instance norm and leaky ReLU, level by level."""

    def __init__(self, like: Any, slope: float) -> None:
        super().__init__()
        dims = like.spatial_dims
        widths = [*like.features, like.bottleneck_channels]

        def block(in_channels: int, out_channels: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for n in (in_channels, out_channels):
                layers += [
                    CONV[dims](n, out_channels, 3, padding=1),
                    INSTANCE_NORM[dims](out_channels, affine=True),
                    nn.LeakyReLU(slope, inplace=True),
                ]
            return nn.Sequential(*layers)

        entering = [like.in_channels, *widths]
        self.blocks = nn.ModuleList(block(a, b) for a, b in zip(entering, widths, strict=False))
        self.pool = MAX_POOL[dims](2)
        self.ups = nn.ModuleList()
        for i, (width, deep) in enumerate(pairwise(widths)):
            row = nn.ModuleList()
            for column in range(1, len(widths) - i):
                up = TRANSPOSED[dims](deep, width, 2, stride=2)
                row.append(nn.ModuleList([up, block((column + 1) * width, width)]))
            self.ups.append(row)
        self.head = CONV[dims](widths[0], like.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        encoded = []
        for block in self.blocks:
            x = block(x if not encoded else self.pool(encoded[-1]))
            encoded.append(x)
        coarse = [encoded.pop()]
        for row in reversed(self.ups):
            nodes = [encoded.pop()]
            for up, block in row:
                nodes.append(block(torch.cat([*nodes, up(coarse.pop(0))], dim=1)))
            coarse = nodes
        return self.head(coarse[-1])
