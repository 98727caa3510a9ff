"""Exchange of windows of a feature map of which every rank holds a core."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.run.ranks import Index, Ranks

Box = tuple[
    tuple[int, int], ...
]  # start and stop along every axis, in positions of the feature map


@dataclass(frozen=True)
class WindowExchange:
    """What ranks send to each other so that each has a window of a feature map.

    Args:
        dims: Dimension of every axis.
        cores: What each rank has, which together are the whole feature map.
        starts: Where the tensor of each rank begins in the whole feature map.
        windows: What each rank needs.
    """

    dims: tuple[int, ...]
    cores: Sequence[Box]
    starts: Sequence[tuple[int, ...]]
    windows: Sequence[Box]

    @classmethod
    def between(
        cls, tiles: Sequence[Tile], lines: Lines, windows: Sequence[Index]
    ) -> "WindowExchange":
        """Return the exchange for the tiles of all ranks, and windows as slices of the feature map."""
        dims = tuple(line.dim for line in lines)
        whole = [_box(tile.core_of_whole(lines), dims) for tile in tiles]
        local = [_box(tile.core_of_tile(lines), dims) for tile in tiles]
        starts = [
            tuple(there[0] - here[0] for there, here in zip(*boxes, strict=True))
            for boxes in zip(whole, local, strict=True)
        ]
        return cls(dims, whole, starts, [_box(window, dims) for window in windows])

    def forward(self, x: Tensor, ranks: Ranks) -> Tensor:
        """Return the window of this rank, from the cores of all."""
        me = ranks.rank
        sent = [_common(self.cores[me], window) for window in self.windows]
        needed = [_common(core, self.windows[me]) for core in self.cores]
        shape = self._shape(x, self.windows[me])
        window = x.new_empty(shape)
        start = tuple(first for first, _ in self.windows[me])
        pieces = [None if box is None else x[self._index(box, self.starts[me])] for box in sent]
        targets = [None if box is None else window[self._index(box, start)] for box in needed]
        for target, piece in zip(targets, ranks.exchanged(pieces, targets), strict=True):
            if target is not None and piece is not None:
                target.copy_(piece)
        return window

    def backward(self, d_window: Tensor, shape: torch.Size, ranks: Ranks) -> Tensor:
        """Return the gradient of the tensor of this rank, summed over ranks in their order."""
        me = ranks.rank
        sent = [_common(core, self.windows[me]) for core in self.cores]
        needed = [_common(self.cores[me], window) for window in self.windows]
        start = tuple(first for first, _ in self.windows[me])
        d_x = d_window.new_zeros(shape)
        pieces = [None if box is None else d_window[self._index(box, start)] for box in sent]
        targets = [
            None if box is None else d_x[self._index(box, self.starts[me])] for box in needed
        ]
        for target, piece in zip(targets, ranks.exchanged(pieces, targets), strict=True):
            if target is not None and piece is not None:
                target.add_(piece)
        return d_x

    def _shape(self, x: Tensor, box: Box) -> list[int]:
        shape = list(x.shape)
        for dim, (start, stop) in zip(self.dims, box, strict=True):
            shape[dim] = stop - start
        return shape

    def _index(self, box: Box, start: Sequence[int]) -> Index:
        """Return the slices of a box in a tensor that begins at `start`."""
        index = [slice(None)] * (1 + max(1, *self.dims))
        for dim, (first, stop), at in zip(self.dims, box, start, strict=True):
            index[dim] = slice(first - at, stop - at)
        return tuple(index)


def exchanged(
    exchange: WindowExchange, x: Tensor, ranks: Ranks, token: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the token, and the window of this rank; their graph sends gradients back."""
    if not torch.is_grad_enabled():
        return token, exchange.forward(x, ranks)
    token, window = _Exchanged.apply(exchange, ranks, token, x)
    return token, window


class _Exchanged(torch.autograd.Function):
    """Exchange windows; backward sends their gradients to the ranks that have the cores."""

    @staticmethod
    def forward(
        ctx: Any, exchange: WindowExchange, ranks: Ranks, token: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        window = exchange.forward(x, ranks)
        ctx.given = exchange, ranks, x.shape
        ctx.like = window.shape, window.new_empty(0)
        if not ctx.needs_input_grad[3]:
            ctx.mark_non_differentiable(window)
        return token.clone(), window

    @staticmethod
    def backward(ctx: Any, d_token: Tensor, d_window: Tensor | None) -> tuple[Any, ...]:
        exchange, ranks, shape = ctx.given
        if not ctx.needs_input_grad[3] or not ranks.anywhere(d_window is not None):
            return None, None, d_token, None
        if d_window is None:
            of_window, like = ctx.like
            d_window = like.new_zeros(of_window)
        return None, None, d_token, exchange.backward(d_window, shape, ranks)


def _box(index: Index, dims: Sequence[int]) -> Box:
    return tuple((index[dim].start, index[dim].stop) for dim in dims)


def _common(one: Box, other: Box) -> Box | None:
    """Return the positions in both boxes; None if there are none."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(start < stop for start, stop in both) else None
