"""Parallel streams of several resolutions that exchange features."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.sizes import Size, fit, multiplied, spatial
from neurenix_ms._core.tracing import entries, one_call, sizes_are_open
from neurenix_ms.checkpointing import checkpointed, recomputed
from neurenix_ms.layers.blocks import ConvSpec
from neurenix_ms.layers.conditioning import keyword
from neurenix_ms.layers.naming import make_act
from neurenix_ms.layers.resize import NEAREST, Resize
from neurenix_ms.multiscale.named import Stack
from neurenix_ms.multiscale.slots import Slots


@one_call
def repeated(coarse: Tensor, factor: int, size: Size) -> Tensor:
    """Repeat every position so often along each axis, and crop the result to `size`."""
    if not sizes_are_open():  # the kernel writes no more than is needed
        y: Tensor = NEAREST[len(size)](coarse, list(size), *(float(factor),) * len(size))
        return y
    whole = multiplied(spatial(coarse), (factor,) * len(size))
    return fit(F.interpolate(coarse, whole), size)


class Sum(nn.Module):
    """The sum of a stream, of others of its size, and of coarser ones, enlarged; an activation.

    Args:
        num_finer: Number of others of its size.
        spec: Number of axes and activation.
        up: "nearest" or "linear".

    Shape:
        `(B, C, *S)`, `num_finer` of the same shape, coarser `(B, C, *ceil(S / 2**k))` for k = 1, 2, ...
        -> `(B, C, *S)`
    """

    def __init__(self, num_finer: int, spec: ConvSpec, up: str) -> None:
        super().__init__()
        self.num_finer = num_finer
        self.act = make_act(spec.act)
        self.resize = None if up == "nearest" else Resize(up, spec.spatial_dims)

    def forward(self, own: Tensor, *others: Tensor) -> Tensor:
        total: Tensor | None = None  # the first tensor that nothing else reads
        for y in others[: self.num_finer]:
            total = own + y if total is None else total.add_(y)
        for index, y in enumerate(others[self.num_finer :], start=1):
            y = self._enlarged(y, 2**index, own)
            total = own + y if total is None else total.add_(y)
            del y
        assert total is not None
        return self.act(total)

    def _enlarged(self, coarse: Tensor, factor: int, like: Tensor) -> Tensor:
        if self.resize is None:
            return repeated(coarse, factor, spatial(like))
        whole = multiplied(spatial(coarse), (factor,) * (coarse.ndim - 2))
        return fit(self.resize(coarse, whole), spatial(like))


class Exchange(nn.Module):
    """Add every stream to every other: strided convolutions to coarser, 1x1 ones to finer streams.

    Args:
        widths: Channels of the streams, finest first.
        spec: Norm, activation, padding and condition of the convolutions.
        up: "nearest" or "linear".

    Shape:
        list of `(B, widths[i], *S_i)`, `S_i` half of the one before, rounded up, and the condition
        `(B, K)` of conditioned convolutions -> the same list

    Source: Wang et al. 2019, "Deep High-Resolution Representation Learning", equation 2, figure 3.
    """

    def __init__(self, widths: Sequence[int], spec: ConvSpec, up: str) -> None:
        super().__init__()
        point, plain = spec.point(), replace(spec, act=None)
        self.edges = nn.ModuleList()
        self.sums = nn.ModuleList()
        for i, width in enumerate(widths):
            edges = nn.ModuleList()
            for j, other in enumerate(widths):
                if j < i:
                    steps = [spec.layer(other, other, stride=2) for _ in range(i - j - 1)]
                    edges.append(Stack(*steps, plain.layer(other, width, stride=2)))
                elif j > i:
                    edges.append(point.layer(other, width))
            self.edges.append(edges)
            self.sums.append(Sum(i, spec, up))

    def forward(self, streams: Sequence[Tensor], condition: Tensor | None = None) -> list[Tensor]:
        given, results = keyword("condition", condition), []
        for i, (edges, total) in enumerate(zip(self.edges, self.sums, strict=True)):
            others = [x for j, x in enumerate(entries(streams, len(self.sums))) if j != i]
            steps = cast(nn.ModuleList, edges)
            maps = [edge(x, **given) for edge, x in zip(steps, others, strict=True)]
            results.append(recomputed(total, streams[i], *maps))
        return results


class StreamBlock(nn.Module):
    """Blocks along every stream, and an exchange between the streams.

    Args:
        levels: Slots of the streams, finest first.
        in_channels: Channels of every stream that enters.
        widths: Channels of every stream that leaves.
        up: "nearest" or "linear".

    Shape:
        list of `(B, in_channels[i], *S_i)`, which is written to, and the condition `(B, K)` of
        conditioned blocks -> list of `(B, widths[i], *S_i)`
    """

    def __init__(
        self,
        levels: Sequence[Slots],
        in_channels: Sequence[int],
        widths: Sequence[int],
        up: str,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            slots.make_block(a, b) for slots, a, b in zip(levels, in_channels, widths, strict=True)
        )
        self.exchange: nn.Module | None = None
        if len(widths) > 1:
            self.exchange = Exchange(widths, levels[0].spec, up)

    def forward(self, streams: list[Tensor], condition: Tensor | None = None) -> list[Tensor]:
        given = keyword("condition", condition)
        for index, block in enumerate(self.blocks):
            streams[index] = checkpointed(block, streams[index], **given)
        return streams if self.exchange is None else self.exchange(streams, **given)
