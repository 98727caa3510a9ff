"""A map of any size in, the same map pooled to a fixed number of bins per axis out."""

from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms.nd import ADAPTIVE_POOLS, SpatialDims, choose


class Grid(nn.Module):
    """Adaptive pooling, also in an ONNX file whose sizes are open.

    ONNX has no adaptive pooling, and the exporter writes the windows of its example down as numbers.
    There the bins of every axis are taken in turn instead, from indices that are computed.

    Shape:
        `(B, C, *S)` -> `(B, C, *(bins per axis))`
    """

    def __init__(
        self, bins: int, pool_type: Literal["avg", "max"], spatial_dims: SpatialDims
    ) -> None:
        super().__init__()
        pools = choose(ADAPTIVE_POOLS, pool_type, "pool_type")
        self.pool = choose(pools, spatial_dims, "spatial_dims")(bins)
        self.bins = bins
        self.pool_type = pool_type

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            for axis in range(2, x.ndim):
                x = self.along(x, axis)
            return x
        return self.pool(x)

    def along(self, x: Tensor, axis: int) -> Tensor:
        """Pool one axis."""
        size = x.shape[axis]
        number = torch.arange(self.bins, device=x.device).unsqueeze(1)
        start = number * size // self.bins
        stop = ((number + 1) * size + self.bins - 1) // self.bins
        cell = torch.arange(size, device=x.device)
        inside = (cell >= start) & (cell < stop)
        x = x.movedim(axis, -1)
        if self.pool_type == "avg":
            share = inside.to(x.dtype) / (stop - start)
            return (x @ share.T.to(x.dtype)).movedim(-1, axis)
        return torch.where(inside, x.unsqueeze(-2), -torch.inf).amax(-1).movedim(-1, axis)
