"""A loss of structural similarity at several scales."""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_number
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import CONVOLVE, choose
from neurenix_ms._core.sizes import spatial
from neurenix_ms.training.losses import check_same_shapes

AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
PUBLISHED = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LEAST = 1e-6  # of a similarity before a power of it is taken, whose slope at 0 has no limit


class MultiScaleStructuralSimilarity(Described, nn.Module):
    """One minus the structural similarity of prediction and target at several scales.

    It compares means, contrasts and patterns of small windows instead of pixels, and is close to the
    perceived difference. Use torchmetrics for the metric of large 2-D images. This loss is for training,
    in 1-D to 3-D, with masks, and at any size.

    Args:
        data_range: Largest minus smallest possible value.
        weights: Exponent of every scale, finest first; scales that a small input does not have are left
            out, and the exponents of the others are raised to the same sum.
        sigma: Standard deviation of the Gaussian window, in pixels.
        k1: Fraction of `data_range` that keeps the comparison of small means stable.
        k2: Fraction of `data_range` that keeps the comparison of small contrasts stable.

    Shape:
        two of `(B, C, *S)`, and optionally a mask `(B, 1, *S)`, 0 where a pixel does not count -> a
        scalar

    Raises:
        ValueError: If a number is out of range, the target has another shape, or the mask has the wrong
            shape or includes no pixel of a sample.

    Source: Wang et al. 2003, "Multiscale Structural Similarity", equations 2 to 7. Deviation: windows at
    borders and beside pixels that do not count are weighted averages of what they contain; negative
    similarities of a scale are taken as 0.

    Examples:
        >>> x = torch.rand(1, 3, 48, 32)
        >>> loss = MultiScaleStructuralSimilarity()
        >>> f"{loss(x, x):.3f}", bool(loss(x, 1 - x) > 0.9)
        ('0.000', True)
    """

    @checked
    def __init__(
        self,
        data_range: float = 1.0,
        *,
        weights: Sequence[float] = PUBLISHED,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
    ) -> None:
        super().__init__()
        if min(weights, default=0) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights must be 0 or more, and not all 0, got {list(weights)}")
        self.data_range = check_number("data_range", data_range, above=0)
        self.weights = list(weights)
        self.sigma = check_number("sigma", sigma, above=0, maximum=1000)
        self.k1 = check_number("k1", k1, above=0)
        self.k2 = check_number("k2", k2, above=0)

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return 1 - self.similarity(prediction, target, mask).mean()

    def similarity(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the similarity of every sample, `(B,)`, from 0 to 1."""
        check_same_shapes([prediction], [target])
        choose(AVERAGE, prediction.ndim - 2, "the number of spatial axes")
        prediction, target = (
            x.float() if x.dtype in (torch.half, torch.bfloat16) else x
            for x in (prediction, target)
        )
        counted = _counted(mask, target)
        scales = min(len(self.weights), max(spatial(target)).bit_length())
        found = []
        for scale in range(scales):
            last = scale == scales - 1
            found.append(_mean(self._compared(prediction, target, counted, last), counted))
            if not last:
                halve = partial(_halved, counted=counted)
                prediction, target = halve(prediction), halve(target)
                counted = (_pooled(counted) > 0).to(target.dtype)
        used = torch.tensor(self.weights[:scales], dtype=target.dtype, device=target.device)
        used = used * (sum(self.weights) / used.sum().clamp(min=LEAST))
        return torch.stack(found, dim=1).clamp(min=LEAST).pow(used).prod(dim=1)

    def _compared(self, x: Tensor, y: Tensor, counted: Tensor, with_means: bool) -> Tensor:
        """Return the similarity of contrast and pattern, and perhaps of the mean, of every window."""
        axes = tuple(range(2, x.ndim))
        # what is far from zero would leave no digits to the difference of two squares
        middle = (y * counted).mean(axes, keepdim=True) / counted.mean(axes, keepdim=True)
        a, b = (x - middle) * counted, (y - middle) * counted
        share = self._smoothed(counted).clamp(min=LEAST)
        # one after the other: together they would take five times the memory of an image at once
        first, second = (self._smoothed(z) / share for z in (a, b))
        squares = (self._smoothed(a * a) / share - first * first).clamp(min=0)
        squares = squares + (self._smoothed(b * b) / share - second * second).clamp(min=0)
        common = self._smoothed(a * b) / share - first * second
        c1, c2 = ((k * self.data_range) ** 2 for k in (self.k1, self.k2))
        contrast = (2 * common + c2) / (squares + c2)
        if not with_means:
            return contrast
        first, second = first + middle, second + middle
        return (2 * first * second + c1) / (first**2 + second**2 + c1) * contrast

    def _smoothed(self, x: Tensor) -> Tensor:
        """Return the sum of every window, Gaussian along each axis, with zeros outside."""
        radius = int(3.5 * self.sigma + 0.5)
        steps = range(-radius, radius + 1)
        row = [math.exp(-0.5 * (step / self.sigma) ** 2) for step in steps]
        line = x.new_tensor([weight / sum(row) for weight in row])
        dims, channels = x.ndim - 2, x.shape[1]
        for axis in range(dims):
            shape, padding = [1] * dims, [0] * dims
            shape[axis], padding[axis] = len(row), radius
            kernel = line.view(1, 1, *shape).expand(channels, -1, *shape)
            x = CONVOLVE[dims](x, kernel, None, 1, tuple(padding), 1, channels)
        return x


def _counted(mask: Tensor | None, like: Tensor) -> Tensor:
    """Return 1 where a pixel counts and 0 elsewhere, `(B, 1, *S)`."""
    shape = (len(like), 1, *spatial(like))
    if mask is None:
        return like.new_ones(1, *shape[1:])
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {shape}, got {tuple(mask.shape)}")
    counted = (mask != 0).to(like.dtype)
    if not counted.flatten(1).any(1).all():
        raise ValueError("mask must include a pixel of every sample, got a sample without any")
    return counted


def _mean(y: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of every sample over the pixels that count."""
    pixels = tuple(range(1, y.ndim))
    return (y * counted).sum(pixels) / (counted.sum(pixels) * y.shape[1])


def _pooled(x: Tensor) -> Tensor:
    edge = [min(2, n) for n in spatial(x)]
    return AVERAGE[x.ndim - 2](x, edge, ceil_mode=True)


def _halved(x: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of every two pixels along every axis, of those that count."""
    return _pooled(x * counted) / _pooled(counted).clamp(min=LEAST)
