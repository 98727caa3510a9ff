"""Image pyramids of signal processing: smoothed and halved, and the details between the levels."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from neurenix_ms.config import Configured
from neurenix_ms.nd import CONVOLVE, SpatialDims, choose, expect_map, expect_positive
from neurenix_ms.resize import Resize
from neurenix_ms.sizes import spatial


def gaussian_weights(sigma: float | None, kernel_size: int) -> Tensor:
    """A row of `kernel_size` weights that sum to 1; `sigma=None` is the binomial row of Burt & Adelson."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    if sigma is None:
        row = [math.comb(kernel_size - 1, k) for k in range(kernel_size)]
        weights = torch.tensor(row, dtype=torch.float64)
    elif math.isfinite(sigma) and sigma > 0:
        distance = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
        weights = torch.exp(-0.5 * (distance / sigma) ** 2)
    else:
        raise ValueError(f"sigma must be finite and above 0, or None, got {sigma}")
    return weights / weights.sum()


class SmoothHalve(nn.Module):
    """Smooth along every axis in turn and keep every second sample."""

    weights: Tensor

    def __init__(self, sigma: float | None, kernel_size: int, spatial_dims: SpatialDims) -> None:
        super().__init__()
        self.convolve = choose(CONVOLVE, spatial_dims, "spatial_dims")
        self.spatial_dims = spatial_dims
        self.radius = kernel_size // 2
        weights = gaussian_weights(sigma, kernel_size).to(torch.get_default_dtype())
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        y = rearrange(x, "b c ... -> (b c) 1 ...")
        for axis in range(2, 2 + self.spatial_dims):
            y = self._halve(y, axis)
        return rearrange(y, "(b c) 1 ... -> b c ...", b=batch)

    def _halve(self, y: Tensor, axis: int) -> Tensor:
        along = [1] * self.spatial_dims
        along[axis - 2] = -1
        weights = self.weights.to(y.dtype)
        weights = (weights / weights.sum()).view(1, 1, *along)  # 1 to the rounding of this dtype
        stride = [2 if n == -1 else 1 for n in along]
        return self.convolve(self._mirrored(y, axis), weights, None, stride)

    def _mirrored(self, y: Tensor, axis: int) -> Tensor:
        """Continue an axis by its mirror image, or by its ends where it is too short for one."""
        n, radius = y.shape[axis], self.radius
        index = torch.arange(-radius, n + radius, device=y.device)
        if n > radius:
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        return y.index_select(axis, index.clamp(0, n - 1))


class GaussianPyramid(Configured, nn.Module):
    """Smooth and halve a map again and again; all levels, finest first, free of aliasing.

    Use it to look at data at several scales, or as fixed front of a network. It has no trainable
    parameters.

    Args:
        num_levels: Number of levels; level 0 is the map itself.
        sigma: Width of the Gaussian in pixels; None takes the binomial weights, [1, 4, 6, 4, 1] / 16.
        kernel_size: Odd number of weights.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> a list of `num_levels` maps, each axis ceil(n / 2) of the level before

    Raises:
        ValueError: If there is no level, `kernel_size` is even, `sigma` is not positive, or the map
            has another rank.

    Source: Burt & Adelson 1983, "The Laplacian Pyramid as a Compact Image Code", equation 1. The
    border is mirrored; on an axis no longer than the kernel's radius its ends are repeated.

    Examples:
        >>> pyramid = GaussianPyramid(num_levels=3, sigma=None)
        >>> [tuple(y.shape) for y in pyramid(torch.zeros(1, 3, 9, 6))]
        [(1, 3, 9, 6), (1, 3, 5, 3), (1, 3, 3, 2)]
    """

    def __init__(
        self,
        num_levels: int = 3,
        sigma: float | None = 1.0,
        kernel_size: int = 5,
        *,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        expect_positive(num_levels=num_levels)
        self.num_levels = num_levels
        self.sigma = sigma
        self.kernel_size = kernel_size
        self.spatial_dims = spatial_dims
        self.halve = SmoothHalve(sigma, kernel_size, spatial_dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        expect_map(x, self.spatial_dims)
        levels = [x]
        while len(levels) < self.num_levels:
            levels.append(self.halve(levels[-1]))
        return levels


class LaplacianPyramid(Configured, nn.Module):
    """Split a map into the details of every scale and a coarse rest; their sum is the map again.

    Use it where a network or a loss should treat scales separately, without loss of information.

    Args:
        num_levels: Number of maps: details, finest first, and the coarse rest last.
        sigma: Width of the Gaussian in pixels; None takes the binomial weights.
        kernel_size: Odd number of weights.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> a list of `num_levels` maps, each axis ceil(n / 2) of the level before

    Raises:
        ValueError: As GaussianPyramid, and if `reconstruct` gets another number of levels.

    Source: Burt & Adelson 1983, equations 3 to 5. Deviation: levels are enlarged linearly to the
    size of the finer one, which makes any size possible.

    Examples:
        >>> pyramid = LaplacianPyramid(num_levels=3)
        >>> x = torch.randn(1, 3, 9, 6)
        >>> torch.allclose(pyramid.reconstruct(pyramid(x)), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        num_levels: int = 3,
        sigma: float | None = 1.0,
        kernel_size: int = 5,
        *,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.sigma = sigma
        self.kernel_size = kernel_size
        self.spatial_dims = spatial_dims
        self.gaussian = GaussianPyramid(num_levels, sigma, kernel_size, spatial_dims=spatial_dims)
        self.resize = Resize("linear", spatial_dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.gaussian(x)
        details = [
            fine - self.resize(coarse, spatial(fine))
            for fine, coarse in zip(levels[:-1], levels[1:], strict=True)
        ]
        return [*details, levels[-1]]

    def reconstruct(self, levels: Sequence[Tensor]) -> Tensor:
        """The map that `levels` were made from, to rounding."""
        if len(levels) != self.num_levels:
            raise ValueError(f"reconstruct needs {self.num_levels} levels, got {len(levels)}")
        x = levels[-1]
        for detail in reversed(levels[:-1]):
            x = detail + self.resize(x, spatial(detail))
        return x
