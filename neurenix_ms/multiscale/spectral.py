"""Fourier mixing: learn a linear map of the lowest Fourier modes of a feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.constants import kept_constants
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.tracing import one_module
from neurenix_ms.checkpointing import recomputed, recomputes
from neurenix_ms.layers.blocks import modulated
from neurenix_ms.layers.conditioning import film_of, given_condition
from neurenix_ms.layers.naming import Act, make_act


class FourierLayer(nn.Module):
    """Mix the channels of every kept Fourier mode by a complex matrix of its own.

    The transform of few modes is a product with a small matrix along every axis. So it is exported and
    compiled as any linear layer, for all sizes at once, and its operations are counted.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(self, in_channels: int, out_channels: int, modes: Sequence[int]) -> None:
        super().__init__()
        self.modes = tuple(modes)
        *leading, last = modes
        # the negative modes of the last axis follow from the others, as the feature map is real
        count = math.prod([*(2 * m - 1 for m in leading), last])
        # of every mode the real parts, and beside them the imaginary ones
        self.weight = nn.Parameter(torch.empty(count, in_channels, 2 * out_channels))
        nn.init.normal_(self.weight, std=(2 * in_channels) ** -0.5)

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        *leading, (to_modes, counts) = [self._transform(axis, x) for axis in range(x.ndim - 2)]
        z = (x @ to_modes).unflatten(-1, (2, -1)).movedim(-2, 2)
        for axis, (matrix, _) in enumerate(leading):
            z = along(z, 3 + axis, matrix)
        z = self.mixed(z) * counts
        # back by the transposed: real parts are even, imaginary ones odd
        for axis, (matrix, _) in enumerate(leading):
            z = along(z, 3 + axis, matrix.T)
        return z.movedim(2, -2).flatten(-2) @ to_modes.T

    def _transform(self, axis: int, x: Tensor) -> tuple[Tensor, ...]:
        """Return the orthonormal transform of an axis, and how many modes every kept one stands for."""
        size, modes, last = x.shape[2 + axis], self.modes[axis], axis == len(self.modes) - 1
        key = "fourier", size, modes, last, x.dtype, x.device
        return kept_constants(self, axis, key, lambda: transform(size, modes, last, x))

    def mixed(self, z: Tensor) -> Tensor:
        """Multiply the modes by their matrices, as real products of real and imaginary parts."""
        counts = z.shape[3:]
        per_mode = z.flatten(3).permute(3, 2, 0, 1)  # (modes, parts, B, C_in)
        rows = per_mode.flatten(1, 2).contiguous()  # else every mode is copied by itself
        products = (rows @ self.weight).unflatten(1, (2, -1))
        by_real, by_imaginary = products.chunk(2, dim=-1)
        real = by_real[:, 0] - by_imaginary[:, 1]
        imaginary = by_real[:, 1] + by_imaginary[:, 0]
        return torch.stack([real, imaginary]).permute(2, 3, 0, 1).unflatten(3, counts)


def transform(size: int, modes: int, one_sided: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix from the pixels of an axis to its modes, and how many each of these stands for.

    Real and imaginary parts are one after the other: `(size, 2 * modes)` if `one_sided`, for pixels
    without imaginary parts, else `(2 * size, 2 * (2 * modes - 1))`. Modes that the grid does not resolve
    are zero. In a one-sided transform every mode but the mean stands for its negative one too.
    """
    most = modes - 1
    exact = torch.promote_types(like.dtype, torch.float32)
    # the turns of a mode are whole numbers over the size, which keeps long axes exact
    numbers = torch.arange(0 if one_sided else -most, most + 1, device=like.device)
    pixels = torch.arange(size, device=like.device)
    turns = (pixels.unsqueeze(1) * numbers).remainder(size).to(exact)
    angle = turns * (2 * math.pi / size)
    resolved = (2 * numbers.abs() < size).to(exact)
    norm = (resolved / size).sqrt()
    cos, sin = angle.cos() * norm, angle.sin() * norm
    matrix = torch.cat([cos, -sin], dim=1)
    if not one_sided:
        matrix = torch.cat([matrix, torch.cat([sin, cos], dim=1)])
    counts = 1 + (numbers > 0) if one_sided else torch.ones_like(numbers)
    return matrix.to(like.dtype), counts.to(like.dtype)


def along(z: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Multiply real and imaginary parts, the third axis, together with another axis by a matrix."""
    lines = z.movedim((2, dim), (-2, -1)).flatten(-2) @ matrix
    return lines.unflatten(-1, (2, -1)).movedim((-2, -1), (2, dim))


class SpectralMixing(Configured, nn.Module):
    """Mix the lowest Fourier modes of a feature map: global context at the cost of few modes.

    Use it on the coarsest level of a network for fields without borders, or stack several as a Fourier
    neural operator: weights trained at one resolution apply at every other one, if the grid resolves the
    modes. The feature map is treated as periodic. Every pixel depends on the whole feature map, so in
    tiles the module must run whole.

    Args:
        in_channels: Channels of the feature map.
        out_channels: Channels of the result.
        modes: Number of modes per axis, one number or one per axis: the mean and `modes - 1` waves. The
            coefficients of all other waves are dropped, as are those that a small grid does not resolve.
        spatial_dims: Number of spatial axes.
        pointwise: Add a 1x1 convolution of the input, which keeps the content of all other modes.
        act: Activation of the sum.
        condition_channels: Length of the vector on which the sum is conditioned, as blocks in `UNet`.

    Shape:
        `(B, in_channels, *S)`, and a `condition` `(B, condition_channels)` if the module has one ->
        `(B, out_channels, *S)`

    Raises:
        ValueError: If a count is below 1, the number of modes is not that of the axes, the feature map
            has other channels or axes, or the condition does not fit.

    Source: Li et al. 2021, "Fourier Neural Operator", equations 2 to 5. Deviation: kept modes are
    symmetric, from `1 - modes` to `modes - 1`, on all axes.

    Examples:
        >>> import torch
        >>> from neurenix_ms import SpectralMixing
        >>> mix = SpectralMixing(8, 4, modes=5)
        >>> mix(torch.zeros(2, 8, 13, 9)).shape
        torch.Size([2, 4, 13, 9])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: int | Sequence[int] = 8,
        *,
        spatial_dims: SpatialDims = 2,
        pointwise: bool = True,
        act: Act = "gelu",
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        counts = [modes] * spatial_dims if isinstance(modes, int) else list(modes)
        if len(counts) != spatial_dims:
            raise ValueError(f"modes must be one number or {spatial_dims} of them, got {counts}")
        self.modes = modes if isinstance(modes, int) else counts
        self.fourier = FourierLayer(in_channels, out_channels, check_integers("modes", counts, 1))
        self.point = conv(in_channels, out_channels, 1) if pointwise else None
        self.activation = make_act(act)
        self.film = film_of(condition_channels, out_channels)

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        condition = given_condition(x, condition, self.condition_channels)
        y = self.fourier(x)
        if self.point is not None:
            y = self.point(x).add_(y)
        y = modulated(self.film, y, condition)
        return recomputed(self.activation, y)
