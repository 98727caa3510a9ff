"""Resampling of feature maps to a given size, and a check of the interpolation mode."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import LINEAR_MODES, SpatialDims, avg_pool3d, choose
from neurenix_ms._core.sizes import Size, equal, fit, spatial
from neurenix_ms._core.tracing import one_call, one_module, sizes_are_open

LINEAR_NAMES = ("linear", "bilinear", "trilinear")
NEAREST: dict[int, Callable[..., Tensor]] = {
    1: torch._C._nn.upsample_nearest1d,
    2: torch._C._nn.upsample_nearest2d,
    3: torch._C._nn.upsample_nearest3d,
}
LINEAR: dict[int, Callable[..., Tensor]] = {
    1: torch._C._nn.upsample_linear1d,
    2: torch._C._nn.upsample_bilinear2d,
    3: torch._C._nn.upsample_trilinear3d,
}
MODES = ("nearest", *LINEAR_NAMES, "bicubic", "area")


def torch_mode(mode: str, spatial_dims: SpatialDims, antialias: bool = False) -> str:
    """Return the name of `mode` in `F.interpolate` for `spatial_dims` axes, or raise."""
    linear = choose(LINEAR_MODES, spatial_dims, "spatial_dims")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {list(MODES)}, got {mode!r}")
    if mode == "bicubic" and spatial_dims != 2:
        raise ValueError(f"mode 'bicubic' needs spatial_dims 2, got {spatial_dims}")
    smooth = mode == "bicubic" or mode in LINEAR_NAMES
    if antialias and not (smooth and spatial_dims == 2):
        raise ValueError(
            "antialias needs spatial_dims 2 and mode 'bilinear' or 'bicubic', "
            f"got spatial_dims {spatial_dims} and mode {mode!r}"
        )
    return linear if mode in LINEAR_NAMES else mode


@one_call
def halved(x: Tensor) -> Tensor:
    """Return the mean of every two positions along each axis; all axes must be even."""
    pools: dict[int, Callable[..., Tensor]]
    pools = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: avg_pool3d}
    return pools[x.ndim - 2](x, 2)


@one_call
def doubled(x: Tensor) -> Tensor:
    """Repeat every position twice along each axis."""
    return F.interpolate(x, tuple(2 * n for n in spatial(x)))


@one_call
def enlarged(coarse: Tensor, size: Size) -> Tensor:
    """Repeat every position twice along each axis, the last one also where `size` is odd.

    Entry i is entry `i // 2` of the coarser feature map at every size. `F.interpolate` takes a size or a
    factor; with both, no enlarged tensor has to be cropped or padded.
    """
    if not sizes_are_open():
        y: Tensor = NEAREST[len(size)](coarse, list(size), *(2.0,) * len(size))
        return y
    for axis in range(2, coarse.ndim):  # compiled, the kernel would not stop at the last entry
        last = coarse.narrow(axis, coarse.shape[axis] - 1, 1)
        coarse = torch.cat([coarse, last], dim=axis)
    return fit(doubled(coarse), size)


class Resize(nn.Module):
    """Resample a feature map to a given size; one of that size is returned unchanged.

    Args:
        mode: "nearest", "bilinear" (linear in any number of axes), "bicubic" or "area".
        spatial_dims: Number of spatial axes.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass filter before downsampling (2-D, "bilinear" or "bicubic").

    Shape:
        `(B, C, *S)` and a size `T` -> `(B, C, *T)`

    Raises:
        ValueError: If the mode does not exist in `spatial_dims` dimensions.

    Examples:
        >>> import torch
        >>> Resize("bilinear")(torch.zeros(1, 3, 5, 7), (10, 4)).shape
        torch.Size([1, 3, 10, 4])
    """

    @checked
    def __init__(
        self,
        mode: str = "bilinear",
        spatial_dims: SpatialDims = 2,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.mode = torch_mode(mode, spatial_dims, antialias)
        self.align_corners = None if self.mode in ("nearest", "area") else align_corners
        self.antialias = antialias

    @one_module
    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x if equal(spatial(x), size) else self.resampled(x, size)

    def resampled(self, x: Tensor, size: Size) -> Tensor:
        """Return a feature map of another size, resampled."""
        return F.interpolate(
            x, tuple(size), None, self.mode, self.align_corners, antialias=self.antialias
        )

    def resampled_unchecked(self, x: Tensor, size: Size) -> Tensor:
        """Return `resampled(x, size)` without the checks of `F.interpolate`, slow on small inputs."""
        if not x.is_cpu or self.antialias or self.mode not in LINEAR_NAMES:
            return self.resampled(x, size)
        return LINEAR[len(size)](x, size, self.align_corners, *(None,) * len(size))

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, align_corners={self.align_corners}"
