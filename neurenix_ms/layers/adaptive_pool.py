"""A map of any size in, the same map pooled to a fixed number of bins per axis out."""

from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import ADAPTIVE_POOLS, SpatialDims, choose
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import is_known, one_module

ENDLESS = 2**62  # cells along an axis


class AdaptivePool(nn.Module):
    """Adaptive pooling, also in an ONNX file and in a compiled graph whose sizes are open.

    ONNX has no adaptive pooling, and the exporter writes the windows of its example down as numbers;
    inductor fixes the size of the map. There the bins of every axis are taken in turn instead, from
    indices that are computed.

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

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        if not self._open(x):
            return self.pool(x)
        for axis in reversed(range(2, x.ndim)):  # so the first of several maxima gets the gradient
            x = self.along(x, axis)
        return x

    def _open(self, x: Tensor) -> bool:
        """Whether the windows must be computed when the graph is run."""
        if torch.compiler.is_exporting():
            return torch.onnx.is_in_onnx_export()
        # a size that is known while compiling is below any bound, an open one is not
        return torch.compiler.is_compiling() and not all(is_known(n < ENDLESS) for n in spatial(x))

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
        return torch.where(inside, x.unsqueeze(-2), -torch.inf).max(-1).values.movedim(-1, axis)
