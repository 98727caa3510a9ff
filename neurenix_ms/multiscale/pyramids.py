"""Gaussian and Laplacian image pyramids."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    LINEAR_MODES,
    SpatialDims,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.orders import check_halving
from neurenix_ms._core.sizes import spatial
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.blurring import LARGEST_KERNEL, Blur, binomial_weights


def gaussian_weights(sigma: float | None, kernel_size: int) -> list[float]:
    """Return weights that sum to 1: Gaussian, or binomial with `sigma=None` (Burt & Adelson)."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    if sigma is None:
        return binomial_weights(kernel_size)
    check_integer("kernel_size", kernel_size, 1, LARGEST_KERNEL)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be finite and above 0, or None, got {sigma}")
    steps = [(k - kernel_size // 2) / sigma for k in range(kernel_size)]
    row = [math.exp(-0.5 * step * step) for step in steps]
    return [weight / sum(row) for weight in row]


class GaussianPyramid(Configured, nn.Module):
    """Smooth and halve an image repeatedly and return all levels, finest first.

    The levels are free of aliasing. Use it to analyze data at several scales, or as a fixed first stage
    of a network. It has no trainable parameters.

    Args:
        num_levels: Number of levels; level 0 is the input itself.
        sigma: Standard deviation of the Gaussian in pixels; None uses the binomial weights,
            [1, 4, 6, 4, 1] / 16.
        kernel_size: Number of weights, odd.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> a list of `num_levels` tensors, each axis ceil(n / 2) of the level before

    Raises:
        ValueError: If there is no level, `kernel_size` is even, `sigma` is not positive, or the input
            has the wrong rank.

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
        self.halve = Blur(gaussian_weights(sigma, kernel_size), 2, spatial_dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
        levels = [x]
        while len(levels) < self.num_levels:
            levels.append(self.halve(levels[-1]))
        return levels


class LaplacianPyramid(Configured, nn.Module):
    """Split an image into the details of every scale and a coarse residual.

    `reconstruct` adds the levels up to the image again. Use it where a network or a loss should treat
    scales separately, without loss of information.

    Args:
        num_levels: Number of levels: details, finest first, and the coarse residual last.
        sigma: Standard deviation of the Gaussian in pixels; None uses the binomial weights.
        kernel_size: Number of weights, odd.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> a list of `num_levels` tensors, each axis ceil(n / 2) of the level before

    Raises:
        ValueError: As for `GaussianPyramid`, and if the levels given to `reconstruct` have the wrong
            number, order, batch size or number of channels.

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
        self.gaussian = GaussianPyramid(num_levels, sigma, kernel_size, spatial_dims=spatial_dims)
        self.resize = Resize("linear", spatial_dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.gaussian(x)
        details = [fine - self.resize(coarse, spatial(fine)) for fine, coarse in pairwise(levels)]
        return [*details, levels[-1]]

    def reconstruct(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the image from its levels, up to rounding."""
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
