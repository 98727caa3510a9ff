"""Random rescaling and cropping of an image and its targets, in any number of axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers, check_number, check_tensor

# of one axis: size once rescaled, first position, number of positions
Window = tuple[int, int, int]
BLOCK = 32  # pixels of the result that are computed at a time


@dataclass(frozen=True)
class Kernel:
    """Weights with which pixels of one rescaled axis are interpolated.

    A weight falls linearly with the distance, and reaches as far as a pixel of the result where the
    axis shrinks, as `antialias` of `F.interpolate` does.
    """

    size: int  # of the axis
    first: np.ndarray  # for every pixel of the result, that of its first weight; it may be below 0
    weights: np.ndarray  # 0 outside the axis

    @classmethod
    def of(cls, size: int, rescaled: int, inside: range) -> "Kernel":
        """Return the kernel for the pixels `inside` of an axis that is rescaled."""
        ratio = size / rescaled
        reach = max(1.0, ratio)
        centers = (np.arange(inside.start, inside.stop) + 0.5) * ratio
        first = np.floor(centers - reach + 0.5)
        places = first[:, None] + np.arange(int(2 * reach) + 2)
        weights = np.maximum(1 - np.abs(places + 0.5 - centers[:, None]) / reach, 0)
        weights[(places < 0) | (places >= size)] = 0
        weights /= weights.sum(1, keepdims=True)
        return cls(size, first.astype(np.int64), weights)

    def read(self, block: slice = slice(None)) -> range:
        """Return the pixels that a block of the result reads."""
        first = self.first[block]
        return range(max(0, int(first[0])), min(self.size, int(first[-1]) + self.weights.shape[1]))

    def matrix(self, block: slice) -> np.ndarray:
        """Return the weights of these pixels in the block."""
        first, weights, read = self.first[block], self.weights[block], self.read(block)
        rows, taps = weights.shape
        matrix = np.zeros((rows, first[-1] - first[0] + taps))
        columns = (first - first[0])[:, None] + np.arange(taps)
        matrix[np.arange(rows)[:, None], columns] = weights
        return matrix[:, read.start - first[0] : read.stop - first[0]]

    def applied(self, x: Tensor, axis: int) -> Tensor:
        """Interpolate an axis that holds the pixels to read.

        A pixel of the result reads few others, so blocks are products with small matrices.
        """
        count, start = len(self.first), self.read().start
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        rows = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
        y = x.new_empty(len(rows), count, rows.shape[2])
        for stop in range(BLOCK, count + BLOCK, BLOCK):
            block = slice(stop - BLOCK, min(stop, count))
            places, matrix = self.read(block), torch.from_numpy(self.matrix(block)).to(x)
            read = rows[:, places.start - start : places.stop - start]
            if y.shape[2] == 1:
                torch.matmul(read[..., 0], matrix.T, out=y[:, block, 0])
            else:
                torch.bmm(matrix.expand(len(rows), -1, -1), read, out=y[:, block])
        return y.reshape(*before, count, *after)


class RandomScaledCrop:
    """Rescale an image and its targets by a random factor, and crop or pad them to one size.

    Use it in training if objects will occur at scales that the data do not contain, as a transform of
    `RandomCrops`, of your own dataset, or in a `Compose` of torchvision.transforms.v2. Image and targets
    are rescaled and cropped in the same way. Only the pixels of the crop are computed.

    The first argument of a call is an image: it is interpolated linearly, with a low-pass filter where
    it shrinks. Other arguments of integers or booleans, and masks of torchvision, are labels: they take
    the nearest pixel. Others of floating-point numbers are rescaled as the image.

    Args:
        size: Size of the results in pixels or voxels, one number or one per axis.
        scales: Smallest and largest factor; its logarithm is drawn from a uniform distribution.
        per_axis: Draw a factor for every axis, which changes aspect ratios.
        fill: Value around a rescaled image that is smaller than `size`.
        label_fill: The same for labels, such as the `ignore_index` of a loss.
        generator: Source of the random numbers; None uses the default generator, which a `DataLoader`
            seeds in every worker. A generator of your own is copied to all workers, which then draw the
            same numbers.

    Shape:
        `(C, *S)` and targets `(*S)` or `(K, *S)` -> the same with `size` in place of `S`

    Raises:
        ValueError: If a size is below 1, a scale is not above 0 or the two are not ascending, or image
            and targets are not tensors, or their sizes or axes do not match.

    Examples:
        >>> crop = RandomScaledCrop(32, (0.5, 2.0), label_fill=255)
        >>> image, labels = crop(torch.rand(3, 40, 56), torch.zeros(40, 56, dtype=torch.long))
        >>> image.shape, labels.shape
        (torch.Size([3, 32, 32]), torch.Size([32, 32]))
    """

    @checked
    def __init__(
        self,
        size: int | Sequence[int],
        scales: Sequence[float] = (0.5, 2.0),
        *,
        per_axis: bool = False,
        fill: float = 0.0,
        label_fill: int = 0,
        generator: Any = None,
    ) -> None:
        self.size = check_integers("size", [size] if isinstance(size, int) else size, 1)
        self.is_one_edge = isinstance(size, int)
        bounds = [check_number("scales", scale, above=0) for scale in scales]
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise ValueError(f"scales must be a smallest and a largest factor, got {bounds}")
        self.scales = bounds
        self.per_axis = per_axis
        self.fill = fill
        self.label_fill = label_fill
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(
                f"generator must be a torch.Generator or None, got {type(generator).__name__}"
            )
        self.generator = generator

    def __call__(self, image: Tensor, *targets: Tensor) -> Any:
        """Rescale and crop an image; with targets, return a tuple of all."""
        check_tensor("the image", image)
        spatial = tuple(image.shape[1:])
        edges = self.size * len(spatial) if self.is_one_edge else self.size
        if not spatial or len(edges) != len(spatial):
            count = "one or more" if self.is_one_edge else len(edges)
            raise ValueError(
                f"the image must be (C, *S) with {count} spatial axes, got shape {tuple(image.shape)}"
            )
        for target in targets:
            check_tensor("a target", target)
            dims = len(spatial)
            if tuple(target.shape[-dims:]) != spatial or target.ndim not in (dims, dims + 1):
                raise ValueError(
                    f"targets must have the spatial size {spatial} of the image, got shape "
                    f"{tuple(target.shape)}"
                )
        windows = self._drawn(spatial, edges)
        results = [
            self._labels(x, windows) if number > 0 and _is_label(x) else self._image(x, windows)
            for number, x in enumerate((image, *targets))
        ]
        return tuple(results) if targets else results[0]

    def _drawn(self, spatial: Sequence[int], edges: Sequence[int]) -> list[Window]:
        """Draw a factor and a place for the crop, or for the image in it if that is larger."""
        low, high = torch.tensor(self.scales, dtype=torch.float64).log().tolist()
        draws = torch.rand(len(spatial), generator=self.generator, dtype=torch.float64)
        if not self.per_axis:
            draws = draws[:1].expand(len(spatial))
        factors = torch.exp(low + (high - low) * draws).tolist()
        windows = []
        for n, edge, factor in zip(spatial, edges, factors, strict=True):
            rescaled = max(1, round(n * factor))
            free = rescaled - edge
            place = int(torch.randint(abs(free) + 1, (), generator=self.generator))
            windows.append((rescaled, place if free >= 0 else -place, edge))
        return windows

    def _image(self, x: Tensor, windows: Sequence[Window]) -> Tensor:
        y = x.as_subclass(Tensor)
        if not x.is_floating_point():
            y = y.to(torch.float32)
        first = x.ndim - len(windows)
        kernels: dict[int, Kernel] = {}
        for axis, (window, n) in enumerate(zip(windows, y.shape[first:], strict=True), start=first):
            read = _inside(window)
            if window[0] != n:
                kernels[axis] = Kernel.of(n, window[0], read)
                read = kernels[axis].read()
            y = y.narrow(axis, read.start, len(read))
        for axis, kernel in kernels.items():
            y = kernel.applied(y, axis)
        if not x.is_floating_point():
            limits = torch.iinfo(x.dtype) if x.dtype != torch.bool else None
            y = y.round().clamp(limits.min, limits.max) if limits else y >= 0.5
        return _padded(y.to(x.dtype), windows, first, self.fill).as_subclass(type(x))

    def _labels(self, x: Tensor, windows: Sequence[Window]) -> Tensor:
        y = x.as_subclass(Tensor)
        first = x.ndim - len(windows)
        for axis, window in enumerate(windows, start=first):
            n, inside = y.shape[axis], _inside(window)
            places = (2 * torch.arange(inside.start, inside.stop) + 1) * n // (2 * window[0])
            y = y.index_select(axis, places.to(y.device))
        return _padded(y, windows, first, self.label_fill).as_subclass(type(x))


def _inside(window: Window) -> range:
    """Return the positions of a rescaled axis that are in the crop."""
    rescaled, place, edge = window
    return range(max(0, place), min(rescaled, place + edge))


def _padded(y: Tensor, windows: Sequence[Window], first: int, value: float) -> Tensor:
    """Return `y` at its place in a tensor of the size of the crop."""
    if all(len(_inside(window)) == window[2] for window in windows):
        return y.contiguous()
    padded = y.new_full((*y.shape[:first], *(edge for _, _, edge in windows)), value)
    starts = [max(0, -place) for _, place, _ in windows]
    inner = padded
    for axis, start in enumerate(starts, start=first):
        inner = inner.narrow(axis, start, y.shape[axis])
    inner.copy_(y)
    return padded


def _is_label(x: Tensor) -> bool:
    return not x.is_floating_point() or type(x).__name__ == "Mask"
