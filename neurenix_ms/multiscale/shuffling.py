"""Pixel unshuffle and shuffle in one, two and three dimensions."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_rank
from neurenix_ms._core.sizes import Size, fit, spatial
from neurenix_ms._core.tracing import one_call, sizes_are_open
from neurenix_ms.multiscale.transforms import as_size

# of the axes of blocks, for one, two and three spatial axes: factors first
ORDERS = {1: (0, 1, 3, 2), 2: (0, 1, 3, 5, 2, 4), 3: (0, 1, 3, 5, 7, 2, 4, 6)}


class PixelUnshuffle(Configured, nn.Module):
    """Move every block of pixels into the channels of one pixel.

    Use it in place of pooling if no information may be lost, or before a network, which then works at a
    lower resolution. `PixelShuffle` is its inverse.

    Args:
        factor: Edge of a block in pixels, one number or one per spatial axis.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> `(B, C * prod(factor), *ceil(S / factor))`; an axis that `factor` does not
        divide is padded with zeros at its end

    Raises:
        ValueError: If a factor is below 1, their number is not that of the axes, or the input has
            another rank.

    Source: Shi et al. 2016, "Real-time single image and video super-resolution", equation 4, inverted;
    order of the channels as in `torch.nn.PixelUnshuffle`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PixelUnshuffle
        >>> PixelUnshuffle(2, spatial_dims=3)(torch.zeros(1, 3, 9, 8, 7)).shape
        torch.Size([1, 24, 5, 4, 4])
    """

    @checked
    def __init__(self, factor: int | Sequence[int] = 2, *, spatial_dims: SpatialDims = 2) -> None:
        super().__init__()
        self.factors = factors_of(factor, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        return unshuffled(x, self.factors)


class PixelShuffle(Configured, nn.Module):
    """Spread the channels of every pixel over a block of pixels.

    Use it after a convolution as upsampling with weights that is faster than a transposed convolution
    and does not overlap. It is the inverse of `PixelUnshuffle`.

    Args:
        factor: Edge of a block in pixels, one number or one per spatial axis.
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C * prod(factor), *S)`, and, optionally, the size of the result -> `(B, C, *original_size)`,
        by default `S * factor`; a smaller size crops the end of an axis

    Raises:
        ValueError: If a factor is below 1, their number is not that of the axes, the input has another
            rank or channels that cannot be spread, or `PixelUnshuffle` does not reduce `original_size`
            to the size of the input.

    Source: Shi et al. 2016, "Real-time single image and video super-resolution", equation 4; order of
    the channels as in `torch.nn.PixelShuffle`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PixelShuffle, PixelUnshuffle
        >>> x = torch.randn(1, 3, 9, 7)
        >>> torch.equal(PixelShuffle(2)(PixelUnshuffle(2)(x), (9, 7)), x)
        True
    """

    @checked
    def __init__(self, factor: int | Sequence[int] = 2, *, spatial_dims: SpatialDims = 2) -> None:
        super().__init__()
        self.factors = factors_of(factor, spatial_dims)

    def forward(self, x: Tensor, original_size: int | Sequence[int] | None = None) -> Tensor:
        check_rank(x, self.spatial_dims)
        return shuffled(x, self.factors, original_size)


def factors_of(factor: int | Sequence[int], spatial_dims: int) -> Size:
    """Return one factor per axis."""
    factors = (factor,) * spatial_dims if isinstance(factor, int) else tuple(factor)
    if len(factors) != spatial_dims:
        raise ValueError(f"factor must be one number or {spatial_dims}, got {list(factors)}")
    return tuple(check_integer("factor", n, 1) for n in factors)


@one_call
def unshuffled(x: Tensor, factors: Size) -> Tensor:
    """Move every block of pixels into the channels of one pixel."""
    batch, channels, *size = x.shape
    counts, blocks, wide, is_whole = [], [], channels, not sizes_are_open()
    # in one loop, which takes most of the time of a small call
    for n, f in zip(size, factors, strict=True):
        counts.append((n + f - 1) // f)
        blocks += [counts[-1], f]
        wide = wide * f  # a traced size is a tensor, which *= would change in place
        is_whole = is_whole and n % f == 0
    if not is_whole:
        x = fit(x, tuple(n * f for n, f in zip(counts, factors, strict=True)))
    order = ORDERS[len(factors)]
    return x.reshape(batch, channels, *blocks).permute(order).reshape(batch, wide, *counts)


@one_call
def shuffled(x: Tensor, factors: Size, original_size: int | Sequence[int] | None) -> Tensor:
    """Move the channels of every pixel into a block of pixels."""
    axes, counts = len(factors), x.shape[2:]
    size = None if original_size is None else as_size(original_size, axes)
    check_shuffled(x, factors, size)
    parts = x.reshape(x.shape[0], x.shape[1] // prod(factors), *factors, *counts)
    order = [axis for k in range(axes) for axis in (2 + axes + k, 2 + k)]
    most = [n * f for n, f in zip(counts, factors, strict=True)]
    y = parts.permute(0, 1, *order).reshape(x.shape[0], x.shape[1] // prod(factors), *most)
    return y if size is None else fit(y, size)


def check_shuffled(x: Tensor, factors: Size, size: Size | None) -> None:
    """Raise unless the channels of `x` can be spread over blocks, and `size` has as many blocks."""
    if sizes_are_open():
        return
    if x.shape[1] % prod(factors):
        raise ValueError(
            f"the number of channels must be a multiple of {prod(factors)}, got shape {tuple(x.shape)}"
        )
    if size is None:
        return
    blocks = tuple((n + f - 1) // f for n, f in zip(size, factors, strict=True))
    if blocks != spatial(x):
        raise ValueError(
            f"original_size must have {spatial(x)} blocks of {factors} pixels, got {tuple(size)}"
        )
