"""The streams of a high-resolution network, written the plain way."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import BATCH_NORM, CONV


def layer(in_channels: int, out_channels: int, dims: int, stride: int = 1, kernel: int = 3) -> Any:
    """Convolution and batch norm."""
    conv = CONV[dims](in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return [conv, BATCH_NORM[dims](out_channels)]


class Block(nn.Module):
    """The basic block of a residual network."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *layer(channels, channels, dims),
            nn.ReLU(inplace=True),
            *layer(channels, channels, dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + x, inplace=True)


class Module(nn.Module):
    """Blocks along every stream, and the sum of all streams in each."""

    def __init__(self, widths: list[int], depth: int, dims: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(n, dims) for _ in range(depth))) for n in widths
        )
        self.edges = nn.ModuleList()
        for i, width in enumerate(widths if len(widths) > 1 else []):
            row = nn.ModuleList()
            for j, other in enumerate(widths):
                if j > i:
                    row.append(nn.Sequential(*layer(other, width, dims, kernel=1)))
                elif j < i:
                    steps: list[nn.Module] = []
                    for _ in range(i - j - 1):
                        steps += [*layer(other, other, dims, 2), nn.ReLU(inplace=True)]
                    row.append(nn.Sequential(*steps, *layer(other, width, dims, 2)))
            self.edges.append(row)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        streams = [block(x) for block, x in zip(self.blocks, streams, strict=True)]
        results = []
        for i, row in enumerate(self.edges):
            total = streams[i]
            others = [j for j in range(len(streams)) if j != i]
            for j, edge in zip(others, row, strict=True):
                y = edge(streams[j])
                total = total + (F.interpolate(y, scale_factor=2 ** (j - i)) if j > i else y)
            results.append(F.relu(total, inplace=True))
        return results or streams


class Streams(nn.Module):
    """All stages."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        widths, dims = like.features, like.spatial_dims
        self.branch = nn.ModuleList(
            nn.Sequential(*layer(a, b, dims, 2), nn.ReLU(inplace=True)) for a, b in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            Module(widths[: k + 1], like.depth, dims) for k in range(len(widths))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        streams = [x]
        for index, stage in enumerate(self.stages):
            if index:
                streams.append(self.branch[index - 1](streams[-1]))
            streams = stage(streams)
        return streams
