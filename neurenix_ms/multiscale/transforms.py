"""Resampling of images to several scales, and back."""

from collections.abc import Sequence
from typing import overload

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_positive, check_rank
from neurenix_ms._core.remember import Remembers
from neurenix_ms._core.sizes import Size, check_scale, check_scales, scaled, spatial
from neurenix_ms.layers.resize import Resize


def as_size(size: int | Sequence[int], spatial_dims: int) -> Size:
    """Return a size per spatial axis from an int, one int per axis, or a full shape `(B, C, *S)`."""
    if isinstance(size, int):
        return (size,) * spatial_dims
    if len(size) not in (spatial_dims, spatial_dims + 2):
        raise ValueError(
            f"original_size must be an int, {spatial_dims} ints or a shape of {spatial_dims + 2}, "
            f"got {tuple(size)}"
        )
    return tuple(size[-spatial_dims:])


class MultiScaleTransform(Configured, nn.Module):
    """Resample an image to several scales, and back to its size.

    Use it to feed one or several networks with the same data at different resolutions. The inverse
    restores shapes exactly; details that a coarser scale has lost do not come back.

    Args:
        scales: Factors relative to the input; 1.0 is the input itself.
        mode: "nearest", "bilinear" (linear in any number of axes), "bicubic" (2-D) or "area".
        spatial_dims: Number of spatial axes.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass before shrinking (2-D, "bilinear" or "bicubic").

    Shape:
        `(B, C, *S)` -> a list with one `(B, C, *T)` per scale, T = max(1, floor(S * scale))

    Raises:
        ValueError: If there is no scale, one is not finite and positive, the mode is unknown, or the
            input has the wrong rank.

    Examples:
        >>> import torch
        >>> from neurenix_ms import MultiScaleTransform
        >>> transform = MultiScaleTransform([1.0, 0.5])
        >>> [tuple(y.shape) for y in transform(torch.zeros(1, 3, 9, 6))]
        [(1, 3, 9, 6), (1, 3, 4, 3)]
    """

    @checked
    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.5, 0.25),
        mode: str = "bilinear",
        *,
        spatial_dims: SpatialDims = 2,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.scales = check_scales(scales)
        self.resize = Resize(mode, spatial_dims, align_corners, antialias)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
        return [self.at_scale(x, scale) for scale in self.scales]

    def at_scale(self, x: Tensor, scale: float) -> Tensor:
        """Return `x` at one scale."""
        return x if scale == 1.0 else self.resize(x, scaled(spatial(x), scale))

    @overload
    def inverse(self, x: Tensor, original_size: int | Sequence[int]) -> Tensor: ...
    @overload
    def inverse(self, x: Sequence[Tensor], original_size: int | Sequence[int]) -> list[Tensor]: ...
    def inverse(
        self, x: Tensor | Sequence[Tensor], original_size: int | Sequence[int]
    ) -> Tensor | list[Tensor]:
        """Resize one tensor, or every tensor of a list, to `original_size`.

        Args:
            x: A tensor `(B, C, *T)`, or a list of them.
            original_size: One int, one per spatial axis, or the full shape of the original.
        """
        size = as_size(original_size, self.spatial_dims)
        return self.resize(x, size) if isinstance(x, Tensor) else [self.resize(y, size) for y in x]


class Rescale(Configured, Remembers, nn.Module):
    """Resize an image by a factor, and back to exactly its size.

    Use it around a network that should work at another resolution than its data. The module keeps only
    the sizes of the latest forward pass, no tensor.

    Args:
        scale_factor: One factor, or one per spatial axis.
        mode: "nearest", "bilinear" (linear in any number of axes), "bicubic" (2-D) or "area".
        spatial_dims: Number of spatial axes.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass before shrinking (2-D, "bilinear" or "bicubic").

    Shape:
        `(B, C, *S)` -> `(B, C, *T)`, T = max(1, floor(S * scale_factor))

    Raises:
        ValueError: If a factor is not finite and positive, their number is not that of the axes, the
            mode is unknown, or the input has the wrong rank.

    Examples:
        >>> import torch
        >>> from neurenix_ms import Rescale
        >>> half = Rescale(0.5)
        >>> x = torch.zeros(1, 3, 9, 6)
        >>> half(x).shape, half.inverse(half(x)).shape
        (torch.Size([1, 3, 4, 3]), torch.Size([1, 3, 9, 6]))
    """

    @checked
    def __init__(
        self,
        scale_factor: float | Sequence[float] = 0.5,
        mode: str = "bilinear",
        *,
        spatial_dims: SpatialDims = 2,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(scale_factor, float | int):
            self.factors = [float(scale_factor)] * spatial_dims
        else:
            self.factors = list(scale_factor)
        if len(self.factors) != spatial_dims:
            raise ValueError(
                f"scale_factor must be one factor or {spatial_dims}, got {len(self.factors)}"
            )
        for factor in self.factors:
            check_scale(factor, "scale_factor")
        self.resize = Resize(mode, spatial_dims, align_corners, antialias)

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        size = scaled(spatial(x), self.factors)
        self._remember(before=spatial(x), after=size)
        return self.resize(x, size)

    def inverse(self, x: Tensor, original_size: int | Sequence[int] | None = None) -> Tensor:
        """Resize back to the original size.

        Args:
            x: A tensor `(B, C, *T)`.
            original_size: The size to restore. By default the input size of the latest forward pass if
                `x` has the size of its output, otherwise max(1, round(n / scale_factor)).
        """
        check_rank(x, self.spatial_dims)
        if original_size is not None:
            return self.resize(x, as_size(original_size, self.spatial_dims))
        if self._memory is not None and self._memory["after"] == spatial(x):
            return self.resize(x, self._memory["before"])
        sizes = zip(spatial(x), self.factors, strict=True)
        return self.resize(x, tuple(max(1, round(n / factor)) for n, factor in sizes))


class PyramidDownsample(Configured, Remembers, nn.Module):
    """Halve an image repeatedly and return all levels, finest first.

    Use it for inputs or targets at several resolutions (deep supervision, coarse-to-fine training).
    For pyramids free of aliasing use `GaussianPyramid`.

    Args:
        num_levels: Number of levels; level 0 is the input itself.
        mode: "nearest", "bilinear" (linear in any number of axes), "bicubic" (2-D) or "area".
        spatial_dims: Number of spatial axes.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass before shrinking (2-D, "bilinear" or "bicubic").

    Shape:
        `(B, C, *S)` -> a list of `num_levels` tensors, each axis max(1, n // 2) of the level before

    Raises:
        ValueError: If there is no level, the mode is unknown, or the input has the wrong rank.
        IndexError: If the level of `get_level` does not exist.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PyramidDownsample
        >>> pyramid = PyramidDownsample(num_levels=3)
        >>> [tuple(y.shape) for y in pyramid(torch.zeros(1, 3, 9, 6))]
        [(1, 3, 9, 6), (1, 3, 4, 3), (1, 3, 2, 1)]
    """

    @checked
    def __init__(
        self,
        num_levels: int = 3,
        mode: str = "bilinear",
        *,
        spatial_dims: SpatialDims = 2,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        check_positive(num_levels=num_levels)
        self.resize = Resize(mode, spatial_dims, align_corners, antialias)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.clear_features()
        levels = self.compute(x)
        self._remember(levels=levels)
        return levels

    def compute(self, x: Tensor) -> list[Tensor]:
        """Return all levels of `x` without keeping them."""
        check_rank(x, self.spatial_dims)
        levels = [x]
        while len(levels) < self.num_levels:
            levels.append(self.resize(levels[-1], scaled(spatial(levels[-1]), 0.5)))
        return levels

    @checked
    def get_level(self, level: int, x: Tensor | None = None) -> Tensor:
        """Return a level of the latest forward pass, or of `x`; negative numbers count from the end."""
        if not -self.num_levels <= level < self.num_levels:
            raise IndexError(f"level must be an index into {self.num_levels} levels, got {level}")
        return (self._recall("levels") if x is None else self.compute(x))[level]
