"""Encoder, dense skip connections and outputs of nested U-Nets."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import SpatialDims
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms.checkpointing import checkpointed, recomputed
from neurenix_ms.layers.blocks import joined
from neurenix_ms.layers.conditioning import keyword
from neurenix_ms.multiscale.decoder import FinalActivation, Head
from neurenix_ms.multiscale.features import average
from neurenix_ms.multiscale.slots import Slots


class Encoder(nn.Module):
    """Blocks with downsampling between them, whose results are all returned.

    Args:
        levels: Slots of every level, finest first.
        in_channels: Channels of the input.
        widths: Channels of every feature map.

    Shape:
        `(B, in_channels, *S)`, and the condition `(B, K)` of conditioned blocks -> list of
        `(B, widths[i], *S_i)`, finest first
    """

    def __init__(self, levels: Sequence[Slots], in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.is_cheap = [slots.is_pooled_again for slots in levels[:-1]]
        for slots, width in zip(levels, widths, strict=True):
            self.blocks.append(slots.make_encoder(in_channels, width))
            if slots is not levels[-1]:
                down, in_channels = slots.make_down(width)
                self.downs.append(down)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        given = keyword("condition", condition)
        features = [checkpointed(self.blocks[0], x, **given)]
        for down, cheap, block in zip(
            self.downs, self.is_cheap, list(self.blocks)[1:], strict=True
        ):
            x = recomputed(down, features[-1]) if cheap else down(features[-1])
            features.append(checkpointed(block, x, **given))
        return features


class DenseNode(nn.Module):
    """All feature maps before it of one resolution, and the upsampled coarser one, in one block.

    Shape:
        feature maps `(B, C, *S)` and a coarse `(B, D, *S / 2)`, and the condition `(B, K)` of a
        conditioned block -> `(B, C_out, *S)`
    """

    def __init__(self, up: nn.Module, block: nn.Module, skip: nn.Module | None) -> None:
        super().__init__()
        self.up = up
        self.block = block
        self.skip = skip

    def forward(self, *maps: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.block(self.merged(maps[:-1], maps[-1]), **keyword("condition", condition))

    def merged(self, row: Sequence[Tensor], deep: Tensor) -> Tensor:
        """Return what the block is called with, so that the caller can release `deep`."""
        if self.skip is None:
            return joined((*row, self.up(deep)))
        skip = joined(tuple(row))
        return self.skip(skip, fit(self.up(deep), spatial(skip)))


class DenseSkips(nn.Module):
    """The nodes of a nested U-Net: a row per resolution, each node over all nodes before it.

    Args:
        levels: Slots of every level, finest first; those of the last are not used.
        widths: Channels of every level.

    Shape:
        list of `(B, widths[i], *S_i)`, finest first, which is emptied, and the condition `(B, K)` of
        conditioned nodes -> list of `(B, widths[0], *S_0)`, one less, from the shallowest sub-network
        to the whole one
    """

    def __init__(self, levels: Sequence[Slots], widths: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(
            nn.ModuleList(
                _node(levels[i], widths[i], column, widths[i + 1])
                for column in range(1, len(widths) - i)
            )
            for i in range(len(widths) - 1)
        )

    def forward(self, features: list[Tensor], condition: Tensor | None = None) -> list[Tensor]:
        coarse = [features.pop()]
        for nodes in reversed(self.rows):
            row = [features.pop()]
            for node in cast(Iterable[DenseNode], nodes):
                row.append(_called(node, row, coarse, keyword("condition", condition)))
            coarse = row
        return coarse[1:]


def _called(
    node: DenseNode, row: list[Tensor], coarse: list[Tensor], given: dict[str, Any]
) -> Tensor:
    """Call a node with the first of the coarser feature maps, which is released once it is merged."""
    if torch.compiler.is_compiling() or is_observed(node):
        return checkpointed(node, *row, coarse.pop(0), **given)
    return node.block(node.merged(row, coarse.pop(0)), **given)


def _node(slots: Slots, width: int, column: int, deep: int) -> DenseNode:
    up, upsampled = slots.make_up(deep, width)
    skip, channels = slots.make_skip(column * width, upsampled)
    return DenseNode(up, slots.make_block(channels, width), skip)


class Branches(nn.Module):
    """The outputs of the nodes at full resolution: one head for the last, or one for each.

    Args:
        count: Number of nodes.
        deep_supervision: Have a head per node, and return all outputs in training, the last first.
        ensemble: In evaluation, return the mean of all outputs.

    Shape:
        list of `(B, C, *S)` -> `(B, out_channels, *S)`, or a list of them
    """

    def __init__(
        self,
        count: int,
        channels: int,
        out_channels: int,
        *,
        spatial_dims: SpatialDims,
        final_activation: FinalActivation,
        deep_supervision: bool,
        ensemble: bool,
    ) -> None:
        super().__init__()
        if ensemble and not deep_supervision:
            raise ValueError(
                "ensemble needs deep_supervision True, which trains all outputs, got False"
            )
        self.deep_supervision = deep_supervision
        self.ensemble = ensemble
        self.heads = nn.ModuleList(
            Head(channels, out_channels, spatial_dims, final_activation)
            for _ in range(count if deep_supervision else 1)
        )

    def forward(self, nodes: Sequence[Tensor]) -> Tensor | list[Tensor]:
        supervised = self.deep_supervision and self.training
        if not supervised and not self.ensemble:
            return cast(Tensor, self.heads[-1](nodes[-1]))
        outputs = [head(y) for head, y in zip(self.heads, nodes, strict=True)]
        return outputs[::-1] if supervised else average(outputs)
