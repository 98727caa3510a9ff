"""Image pyramids of signal processing: smoothed and halved, and the details between the levels."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    CONVOLVE,
    LINEAR_MODES,
    SpatialDims,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.orders import check_halving
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_module
from neurenix_ms.layers.resize import Resize

LARGEST_KERNEL = 1023  # the largest whose binomial weights are floating-point numbers


def gaussian_weights(sigma: float | None, kernel_size: int) -> list[float]:
    """Weights that sum to 1: of a Gaussian, or with `sigma=None` binomial (Burt & Adelson)."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    check_integer("kernel_size", kernel_size, 1, LARGEST_KERNEL)
    if sigma is None:
        row = [float(math.comb(kernel_size - 1, k)) for k in range(kernel_size)]
    elif math.isfinite(sigma) and sigma > 0:
        steps = [(k - kernel_size // 2) / sigma for k in range(kernel_size)]
        row = [math.exp(-0.5 * step * step) for step in steps]
    else:
        raise ValueError(f"sigma must be finite and above 0, or None, got {sigma}")
    return [weight / sum(row) for weight in row]


class SmoothHalve(nn.Module):
    """Smooth along every axis in turn and keep every second sample.

    Shape:
        `(B, C, *S)` -> `(B, C, *ceil(S / 2))`
    """

    def __init__(self, sigma: float | None, kernel_size: int, spatial_dims: SpatialDims) -> None:
        super().__init__()
        self.weights = gaussian_weights(sigma, kernel_size)
        rows = [[a * b for a in self.weights] for b in self.weights]
        self.table = rows if spatial_dims == 2 else self.weights
        self.spatial_dims = spatial_dims

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        radius = len(self.weights) // 2
        if self.spatial_dims < 3 and min(spatial(x)) > radius:
            return self._halved_at_once(x)
        for axis in range(2, 2 + self.spatial_dims):
            x = self._halve(x, axis)
        return x

    def _halved_at_once(self, x: Tensor) -> Tensor:
        """All axes in one depthwise convolution, which up to 2-D is faster than sums of shifted maps."""
        dims, radius, channels = self.spatial_dims, len(self.weights) // 2, x.shape[1]
        kernel = x.new_tensor(self.table).expand(channels, 1, *[-1] * dims)
        padded = F.pad(x, [radius] * (2 * dims), "reflect")
        return CONVOLVE[dims](padded, kernel, stride=2, groups=channels)

    def _halve(self, x: Tensor, axis: int) -> Tensor:
        kept = (x.shape[axis] + 1) // 2
        radius = len(self.weights) // 2
        # every second sample, and those between: every shift of the kernel is then a plain slice
        steps = 2 * torch.arange(kept + radius, device=x.device) - radius
        phases = [self._mirrored(x, axis, steps + odd) for odd in (0, 1)]
        total = phases[0].narrow(axis, 0, kept) * self.weights[0]
        for shift, weight in enumerate(self.weights[1:], start=1):
            total.add_(phases[shift % 2].narrow(axis, shift // 2, kept), alpha=weight)
        return total

    def _mirrored(self, x: Tensor, axis: int, index: Tensor) -> Tensor:
        """Samples of an axis continued by its mirror image, or by its ends where it is too short."""
        n = x.shape[axis]
        if n > len(self.weights) // 2:
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        return x.index_select(axis, index.clamp(0, n - 1))


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
        >>> import torch
        >>> from neurenix_ms import GaussianPyramid
        >>> pyramid = GaussianPyramid(num_levels=3, sigma=None)
        >>> [tuple(y.shape) for y in pyramid(torch.zeros(1, 3, 9, 6))]
        [(1, 3, 9, 6), (1, 3, 5, 3), (1, 3, 3, 2)]
    """

    @checked
    def __init__(
        self,
        num_levels: int = 3,
        sigma: float | None = 1.0,
        kernel_size: int = 5,
        *,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        check_positive(num_levels=num_levels)
        choose(LINEAR_MODES, spatial_dims, "spatial_dims")
        self.num_levels = num_levels
        self.sigma = sigma
        self.kernel_size = kernel_size
        self.spatial_dims = spatial_dims
        self.halve = SmoothHalve(sigma, kernel_size, spatial_dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
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
        ValueError: As GaussianPyramid, and if `reconstruct` gets another number of levels, or levels
            in another order or of other channels.

    Source: Burt & Adelson 1983, equations 3 to 5. Deviation: levels are enlarged linearly to the
    size of the finer one, which makes any size possible.

    Examples:
        >>> import torch
        >>> from neurenix_ms import LaplacianPyramid
        >>> pyramid = LaplacianPyramid(num_levels=3)
        >>> x = torch.randn(1, 3, 9, 6)
        >>> torch.allclose(pyramid.reconstruct(pyramid(x)), x, atol=1e-6)
        True
    """

    @checked
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
        details = [fine - self.resize(coarse, spatial(fine)) for fine, coarse in pairwise(levels)]
        return [*details, levels[-1]]

    def reconstruct(self, levels: Sequence[Tensor]) -> Tensor:
        """The map that `levels` were made from, to rounding."""
        if len(levels) != self.num_levels:
            raise ValueError(f"reconstruct needs {self.num_levels} levels, got {len(levels)}")
        for level in levels:
            check_rank(level, self.spatial_dims)
            if level.shape[:2] != levels[0].shape[:2]:
                raise ValueError(
                    "all levels must have one batch size and number of channels, got shapes "
                    f"{[tuple(one.shape) for one in levels]}"
                )
        check_halving(levels, "levels")
        x = levels[-1]
        for detail in reversed(levels[:-1]):
            x = detail + self.resize(x, spatial(detail))
        return x
