"""Wavelet transforms of several levels with an exact inverse at every size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_positive, check_rank
from neurenix_ms._core.sizes import Size, fit, spatial, twice
from neurenix_ms._core.tracing import entries, one_call, sizes_are_open
from neurenix_ms.multiscale.lifting import (
    WAVELETS,
    Boundary,
    WaveletName,
    merge,
    split,
    split_together,
)
from neurenix_ms.multiscale.transforms import as_size


class WaveletTransform(Configured, nn.Module):
    """Split a feature map into the details of every level and a coarse approximation.

    Use it where a network, a loss or a compression should treat scales separately: unlike a pyramid
    it returns no more values than it was given, and unlike pooling it loses none, so `inverse`, or an
    `InverseWaveletTransform`, restores the feature map to rounding. It has no parameters.

    Args:
        wavelet: "haar", "cdf53" and "cdf97" (the wavelets of JPEG 2000), or "db2", "db3", "db4"
            (Daubechies with 2, 3 and 4 vanishing moments).
        num_levels: Number of levels.
        boundary: What lies beyond the border: "symmetric" repeats the outermost coefficient in every
            lifting step, "periodic" continues on the other side (and cannot run in tiles).
        spatial_dims: Number of spatial axes.

    Shape:
        `(B, C, *S)` -> a list of `num_levels + 1` tensors, finest first: the details
        `(B, C * (2**spatial_dims - 1), *ceil(S / 2**level))` of levels 1, 2, ..., and the
        approximation, `C` channels of the size of the last details. Of an axis of odd length the high
        bands have one entry less, and end in a 0.

    Raises:
        ValueError: If there is no level, an argument is unknown, or the input has another rank.

    Source: Sweldens 1996, "The lifting scheme", and Daubechies & Sweldens 1998, "Factoring wavelet
    transforms into lifting steps"; sizes and, for "cdf53" and "cdf97", borders of ISO/IEC 15444-1
    (JPEG 2000), annex F. Signs, scales and order of PyWavelets (cH, cV, cD in 2-D), whose mode
    "reflect" is equal for "cdf53" (its `bior2.2`) and "cdf97" (`bior4.4`), and "symmetric" for "haar".

    Examples:
        >>> import torch
        >>> from neurenix_ms import WaveletTransform
        >>> transform = WaveletTransform("cdf97", num_levels=2)
        >>> x = torch.randn(1, 3, 9, 6)
        >>> [tuple(y.shape) for y in transform(x)]
        [(1, 9, 5, 3), (1, 9, 3, 2), (1, 3, 3, 2)]
        >>> torch.allclose(transform.inverse(transform(x), (9, 6)), x, atol=1e-5)
        True
    """

    @checked
    def __init__(
        self,
        wavelet: WaveletName = "haar",
        num_levels: int = 1,
        *,
        boundary: Boundary = "symmetric",
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        check_positive(num_levels=num_levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
        return transformed(x, self.wavelet, self.num_levels, self.boundary)

    def inverse(
        self, levels: Sequence[Tensor], original_size: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return the feature map that `levels` were computed from.

        Args:
            levels: Details, finest first, and the approximation.
            original_size: Size of the feature map; by default twice that of the finest details.

        Raises:
            ValueError: As InverseWaveletTransform.
        """
        arguments = (self.wavelet, self.num_levels, self.boundary, self.spatial_dims)
        return restored(levels, *arguments, original_size)


class InverseWaveletTransform(Configured, nn.Module):
    """Merge the details of every level and a coarse approximation into a feature map.

    Use it as the last layer of a network that computes wavelet coefficients. It is the inverse of
    `WaveletTransform` with the same arguments.

    Args:
        wavelet: "haar", "cdf53", "cdf97", "db2", "db3" or "db4".
        num_levels: Number of levels.
        boundary: "symmetric" or "periodic".
        spatial_dims: Number of spatial axes.

    Shape:
        a list of `num_levels + 1` tensors, finest first: details
        `(B, C * (2**spatial_dims - 1), *S_i)` and the approximation `(B, C, *S)` of the size of the
        last details; and, optionally, the size of the result -> `(B, C, *original_size)`, by default
        twice the size of the finest details

    Raises:
        ValueError: If there is no level, an argument is unknown, the number of tensors, their rank,
            their channels or their sizes do not fit together, or `original_size` is not one that has
            details of that size.

    Source: As WaveletTransform.

    Examples:
        >>> import torch
        >>> from neurenix_ms import InverseWaveletTransform, WaveletTransform
        >>> x = torch.randn(1, 3, 9, 6)
        >>> y = InverseWaveletTransform("db2")(WaveletTransform("db2")(x), (9, 6))
        >>> torch.allclose(y, x, atol=1e-5)
        True
    """

    @checked
    def __init__(
        self,
        wavelet: WaveletName = "haar",
        num_levels: int = 1,
        *,
        boundary: Boundary = "symmetric",
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        check_positive(num_levels=num_levels)

    def forward(
        self, levels: Sequence[Tensor], original_size: int | Sequence[int] | None = None
    ) -> Tensor:
        levels = entries(levels, self.num_levels + 1)
        arguments = (self.wavelet, self.num_levels, self.boundary, self.spatial_dims)
        return restored(levels, *arguments, original_size)


@one_call
def transformed(
    x: Tensor, wavelet: WaveletName, num_levels: int, boundary: Boundary
) -> list[Tensor]:
    """Return the details of every level, finest first, and the approximation."""
    levels, arguments = [], (WAVELETS[wavelet], boundary == "periodic")
    for _ in range(num_levels):
        together = split_together(x, *arguments)
        if together is not None:
            x, details = together
        else:
            x, *bands = split(x, *arguments)
            details = torch.cat([fit(band, spatial(x)) for band in bands], dim=1)
        levels.append(details)
    return [*levels, x]


@one_call
def restored(
    levels: Sequence[Tensor],
    wavelet: WaveletName,
    num_levels: int,
    boundary: Boundary,
    spatial_dims: SpatialDims,
    original_size: int | Sequence[int] | None,
) -> Tensor:
    """Return the feature map with these details, finest first, and this approximation."""
    check_levels(levels, num_levels, spatial_dims)
    *all_details, x = levels
    sizes = [spatial(details) for details in all_details]
    size = twice(sizes[0]) if original_size is None else as_size(original_size, spatial_dims)
    check_details_of(size, sizes[0])
    for details, finer in zip(reversed(all_details), reversed([size, *sizes[:-1]]), strict=True):
        bands = [x, *details.split(x.shape[1], dim=1)]
        x = merge(bands, finer, WAVELETS[wavelet], boundary == "periodic")
    return x


def check_levels(levels: Sequence[Tensor], num_levels: int, spatial_dims: int) -> None:
    """Raise unless `levels` are the details of all levels, finest first, and an approximation."""
    if len(levels) != num_levels + 1:
        raise ValueError(
            f"expected the details of {num_levels} level(s) and an approximation, got "
            f"{len(levels)} tensor(s)"
        )
    for level in levels:
        check_rank(level, spatial_dims)
    if sizes_are_open():
        return
    shapes = [tuple(level.shape) for level in levels]
    batch, channels, *coarse = shapes[-1]
    wide = channels * (2**spatial_dims - 1)
    sizes = [shape[2:] for shape in shapes[:-1]]
    halve = all(halves(fine) == size for fine, size in pairwise(sizes))
    if not halve or sizes[-1] != tuple(coarse) or {s[:2] for s in shapes[:-1]} != {(batch, wide)}:
        raise ValueError(
            f"levels must be details of {wide} channels, finest first, each half as large as those "
            "before (rounded up), and an approximation of the size of the last, got shapes "
            f"{shapes}"
        )


def check_details_of(size: Size, details: Size) -> None:
    """Raise unless a feature map of `size` has details of that size."""
    if not sizes_are_open() and halves(size) != tuple(details):
        raise ValueError(
            f"original_size must be one whose half, rounded up, is that of the finest details, "
            f"{tuple(details)}, got {tuple(size)}"
        )


def halves(size: Sequence[int]) -> Size:
    """Return half of every axis, rounded up."""
    return tuple((n + 1) // 2 for n in size)
