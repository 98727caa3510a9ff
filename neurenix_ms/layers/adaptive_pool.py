"""Adaptive pooling that works for any size in exported and compiled models."""

from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import ADAPTIVE_POOLS, SpatialDims, choose
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import is_known, one_module

UNBOUNDED = 2**62  # an axis length that no real tensor reaches


class AdaptivePool(nn.Module):
    """Adaptive pooling, also in an ONNX file and in a compiled graph with dynamic sizes.

    ONNX has no adaptive pooling, and its exporter stores the windows of the example input as constants.
    Inductor fixes the size of the feature map. In both cases the axes are pooled one after the other
    instead, with windows that are computed from the size.

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
        for axis in reversed(range(2, x.ndim)):  # of equal maxima the first then gets the gradient
            x = self.along(x, axis)
        return x

    def _open(self, x: Tensor) -> bool:
        """Return whether the windows must be computed when the graph is run."""
        if torch.compiler.is_exporting():
            return torch.onnx.is_in_onnx_export()
        # for a size that is known while compiling the comparison is known, for a dynamic one it is not
        return torch.compiler.is_compiling() and not all(
            is_known(n < UNBOUNDED) for n in spatial(x)
        )

    def along(self, x: Tensor, axis: int) -> Tensor:
        """Pool one axis."""
        size = x.shape[axis]
        number = torch.arange(self.bins, device=x.device).unsqueeze(1)
        start = number * size // self.bins
        stop = ((number + 1) * size + self.bins - 1) // self.bins
        position = torch.arange(size, device=x.device)
        inside = (position >= start) & (position < stop)
        x = x.movedim(axis, -1)
        if self.pool_type == "avg":
            weights = inside.to(x.dtype) / (stop - start)
            return (x @ weights.T.to(x.dtype)).movedim(-1, axis)
        return torch.where(inside, x.unsqueeze(-2), -torch.inf).max(-1).values.movedim(-1, axis)
