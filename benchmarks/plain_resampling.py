"""Plain implementations of wavelets, blur pooling and pixel shuffling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
# low-pass and high-pass analysis filters, centered on an even and on an odd sample
FILTERS = {
    "haar": ([0, 2**-0.5, 2**-0.5], [2**-0.5, -(2**-0.5), 0]),
    "cdf53": (
        [2**0.5 * weight for weight in (-0.125, 0.25, 0.75, 0.25, -0.125)],
        [0, 2**-1.5, -(2**-0.5), 2**-1.5, 0],
    ),
    "cdf97": (
        [
            0.037828455507, -0.023849465020, -0.110624404418, 0.377402855613, 0.852698679009,
            0.377402855613, -0.110624404418, -0.023849465020, 0.037828455507,
        ],
        [
            0, -0.064538882629, 0.040689417609, 0.418092273222, -0.788485616406,
            0.418092273222, 0.040689417609, -0.064538882629, 0,
        ],
    ),
}  # fmt: skip


class FilterBank(nn.Module):
    """Convolve with the products of the filters with stride 2, after reflection; even sizes only."""

    def __init__(self, wavelet: str, dims: int) -> None:
        super().__init__()
        low, high = (torch.tensor(taps) for taps in FILTERS[wavelet])
        high = F.pad(high, (1, 0))  # centered one sample further
        low = F.pad(low, (0, 1))
        kernels = [torch.ones(())]
        for _ in range(dims):  # the last axis is the highest bit
            kernels = [k[..., None] * row for row in (low, high) for k in kernels]
        self.kernel = torch.stack(kernels)[:, None]
        self.reach = len(low) // 2 - 1
        self.dims = dims

    def forward(self, x: Tensor) -> list[Tensor]:
        border = [self.reach, self.reach + 1] * self.dims
        alone = F.pad(x.flatten(0, 1)[:, None], border, "reflect")
        bands = CONVOLVE[self.dims](alone, self.kernel, stride=2)
        bands = bands.unflatten(0, x.shape[:2])
        return [bands[:, :, 1:].transpose(1, 2).flatten(1, 2), bands[:, :, 0]]


class InverseFilterBank(nn.Module):
    """Convolve the mirrored coefficients with the transposed filters; even sizes only."""

    def __init__(self, wavelet: str, dims: int) -> None:
        super().__init__()
        analysis = (torch.tensor(taps, dtype=torch.float32) for taps in FILTERS[wavelet])
        low, high = (taps.flip(0) for taps in analysis)
        signs = (-1.0) ** torch.arange(len(low))
        signs = signs * -signs[len(low) // 2]  # positive at every second entry but the center
        # those of the low band from those of the high one, and the other way round
        low, high = F.pad(signs * high, (0, 1)), F.pad(signs * low, (1, 0))
        kernels = [torch.ones(())]
        for _ in range(dims):  # the last axis is the highest bit
            kernels = [k[..., None] * row for row in (low, high) for k in kernels]
        self.kernel = torch.stack(kernels)[:, None]
        self.center = (len(low) - 1) // 2
        self.dims = dims

    def forward(self, levels: list[Tensor]) -> Tensor:
        details, low = levels
        channels = low.shape[1]
        bands = torch.cat([low[:, None], details.unflatten(1, (-1, channels))], dim=1)
        bands = bands.transpose(1, 2).flatten(0, 1)
        more = self.center // 2 + 1  # coefficients beyond the border
        for axis in range(self.dims):
            bands = self._mirrored(bands, axis, more)
        y = TRANSPOSED[self.dims](bands, self.kernel, stride=2)
        for axis, n in enumerate(low.shape[2:], start=2):
            y = y.narrow(axis, 2 * more + self.center, 2 * n)
        return y.unflatten(0, (-1, channels)).squeeze(2)

    def _mirrored(self, bands: Tensor, axis: int, more: int) -> Tensor:
        """Continue every band along an axis as a mirrored image does, without its border twice."""
        n = bands.shape[2 + axis]
        parts = []
        for band, x in enumerate(bands.unbind(1)):
            odd = band >> axis & 1
            place = (2 * torch.arange(-more, n + more) + odd).abs()
            place = (2 * n - 1) - ((2 * n - 1) - place).abs()
            parts.append(x.index_select(1 + axis, place // 2))
        return torch.stack(parts, dim=1)


class BlurPool(nn.Module):
    """A depthwise convolution with stride 2 and the whole binomial kernel."""

    def __init__(self, kernel_size: int, dims: int) -> None:
        super().__init__()
        row = torch.tensor([float(math.comb(kernel_size - 1, k)) for k in range(kernel_size)])
        kernel = row = row / row.sum()
        for _ in range(dims - 1):
            kernel = kernel[..., None] * row
        self.kernel = kernel
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        size = len(self.kernel)
        padded = F.pad(x, [(size - 1) // 2, size // 2] * self.dims, "reflect")
        kernel = self.kernel.expand(x.shape[1], 1, *self.kernel.shape)
        return CONVOLVE[self.dims](padded, kernel, stride=2, groups=x.shape[1])


def unshuffled(x: Tensor) -> Tensor:
    """Use `F.pixel_unshuffle` in 2-D, and stacked slices elsewhere."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, 2)
    parts = [x]
    for axis in range(2, x.ndim):
        parts = [
            part[(slice(None),) * axis + (slice(i, None, 2),)] for part in parts for i in (0, 1)
        ]
    return torch.stack(parts, 2).flatten(1, 2)


def shuffled(x: Tensor) -> Tensor:
    """Use `F.pixel_shuffle` in 2-D, and write to slices elsewhere."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, 2)
    dims = x.ndim - 2
    y = x.new_empty(len(x), x.shape[1] // 2**dims, *(2 * n for n in x.shape[2:]))
    for i in range(2**dims):
        place = [slice(i >> (dims - 1 - axis) & 1, None, 2) for axis in range(dims)]
        y[(slice(None), slice(None), *place)] = x[:, i :: 2**dims]
    return y
