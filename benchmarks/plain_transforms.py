"""Plain implementations of multiscale transforms."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import LINEAR, resized


def scaled_list(x: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Return the image at several scales."""
    mode = LINEAR[x.ndim - 2]
    return [
        x if s == 1 else F.interpolate(x, scale_factor=s, mode=mode, align_corners=False)
        for s in scales
    ]


def halved_list(x: Tensor, num_levels: int) -> list[Tensor]:
    """Return the repeatedly halved image."""
    levels = [x]
    for _ in range(num_levels - 1):
        y = levels[-1]
        levels.append(
            F.interpolate(y, scale_factor=0.5, mode=LINEAR[x.ndim - 2], align_corners=False)
        )
    return levels


class GaussianPyramid(nn.Module):
    """Depthwise convolutions with stride 2 after reflection, with the whole kernel or per axis."""

    def __init__(
        self, num_levels: int, sigma: float | None, dims: int, separable: bool = False
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        if sigma is None:
            row = torch.tensor([float(math.comb(4, k)) for k in range(5)])
        else:
            row = torch.exp(-0.5 * ((torch.arange(5.0) - 2) / sigma) ** 2)
        row = row / row.sum()
        self.kernels = []
        if separable:
            for axis in range(dims):
                shape = [5 if a == axis else 1 for a in range(dims)]
                self.kernels.append(row.reshape(1, 1, *shape))
        else:
            kernel = row
            for _ in range(dims - 1):
                kernel = kernel[..., None] * row
            self.kernels.append(kernel[None, None])

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [x]
        for _ in range(self.num_levels - 1):
            levels.append(self.halve(levels[-1]))
        return levels

    def halve(self, x: Tensor) -> Tensor:
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
        for kernel in self.kernels:
            size = kernel.shape[2:]
            border = [n // 2 for n in reversed(size) for _ in (0, 1)]
            weight = kernel.expand(x.shape[1], *kernel.shape[1:])
            stride = tuple(2 if n > 1 else 1 for n in size)
            padded = F.pad(x, border, mode="reflect")
            x = convolve(padded, weight, stride=stride, groups=x.shape[1])
        return x


class LaplacianPyramid(nn.Module):
    """The difference of every level of a binomial pyramid to the upsampled next one."""

    def __init__(self, num_levels: int, dims: int) -> None:
        super().__init__()
        self.gaussian = GaussianPyramid(num_levels, None, dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.gaussian(x)
        return [a - resized(b, a.shape[2:]) for a, b in pairwise(levels)] + levels[-1:]
