"""Convolution of small feature maps with large dilations on a CPU, without products with the padding.

If the dilation is a large part of an axis, most taps of a kernel of size 3 read mostly padding: with
dilation 24 on 32^3 voxels, 7 products of 8. PyTorch and oneDNN compute them. Here every tap is a matrix
product of the pixels that it reads.
"""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.hooks import is_dense
from neurenix_ms._core.sizes import Size

MOST_OF_PRODUCTS = 0.6  # largest part of the products that reads no padding
FEW_PRODUCTS = 2**25  # below this number the overhead of the calls exceeds the gain
PIECE = 2**17  # most values that are copied at once; more are no faster

Window = tuple[slice, ...]


def is_mostly_padding(x: Tensor, weight: Tensor, dilation: Size) -> bool:
    """Return whether a convolution that keeps the size is faster by `tap_by_tap`."""
    size = x.shape[2:]
    if size.numel() * weight.numel() < FEW_PRODUCTS:
        return False
    axes = zip(size, weight.shape[2:], dilation, strict=True)
    part = prod(1.0 if k == 1 else (1 + 2 * (n - d) / n) / 3 for n, k, d in axes)
    return bool(
        part <= MOST_OF_PRODUCTS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and is_dense(x)
        and is_dense(weight)
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def tap_by_tap(x: Tensor, weight: Tensor, dilation: Size) -> Tensor:
    """Convolve with a kernel of 3 taps or one per axis, and keep the size.

    Shape:
        `(B, C_in, *S)`, `(C_out, C_in, *K)` -> `(B, C_out, *S)`
    """
    y: Tensor = _TapByTap.apply(x, weight, dilation)
    return y


class _TapByTap(torch.autograd.Function):
    """The convolution and its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, dilation: Size) -> Tensor:
        kernel, size = weight.shape[2:], x.shape[2:]
        matrices = weight.flatten(2).permute(2, 0, 1)
        middle = kernel.numel() // 2
        y = torch.bmm(matrices[middle].expand(x.shape[0], -1, -1), x.flatten(2)).unflatten(2, size)
        for tap, read, written in _windows(x, kernel, dilation):
            if tap != middle:
                for source, target in zip(x.unbind(), y.unbind(), strict=True):
                    part = target[written]
                    part.add_(torch.mm(matrices[tap], source[read].flatten(1)).view(part.shape))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), dilation = ctx.saved_tensors, ctx.dilation
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = _of_weight(x, grad, weight.shape, dilation)
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(tuple(range(2, weight.ndim))).transpose(0, 1)
            grad_x = tap_by_tap(grad, flipped, dilation)
        return grad_x, grad_weight, None

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, _: None) -> Any:
        x, weight = ctx.saved_tensors
        change: Any = 0
        if x_t is not None:
            change = change + tap_by_tap(x_t, weight, ctx.dilation)
        if weight_t is not None:
            change = change + tap_by_tap(x, weight_t, ctx.dilation)
        return change


def _of_weight(x: Tensor, grad: Tensor, shape: torch.Size, dilation: Size) -> Tensor:
    """Return the gradient of the weight; autograd can differentiate it."""
    found: list[Any] = [0] * shape[2:].numel()
    for tap, read, written in _windows(x, shape[2:], dilation):
        for source, change in zip(x.unbind(), grad.unbind(), strict=True):
            pixels = source[read].flatten(1).t()
            found[tap] = found[tap] + torch.mm(change[written].flatten(1), pixels)
    zero = grad.new_zeros(shape[:2])  # of taps that read only padding
    return torch.stack([zero + matrix for matrix in found], dim=2).view(shape)


def _windows(x: Tensor, kernel: Size, dilation: Size) -> Iterator[tuple[int, Window, Window]]:
    """Yield the number of a tap, the pixels that it reads and those that it adds to, of one sample.

    A tap comes in several pieces of its first axis, so that no large copies are made.
    """
    most = min(PIECE, x.shape[1:].numel() // 2)
    axes = [list(_places(*axis)) for axis in zip(x.shape[2:], kernel, dilation, strict=True)]
    for places in product(*axes):
        tap = 0
        for (place, _, _), k in zip(places, kernel, strict=True):
            tap = tap * k + place
        (_, start, (first, stop)), *others = places
        step = max(1, most // (x.shape[1] * prod(end - begin for _, _, (begin, end) in others)))
        read = [slice(a, a + end - begin) for _, a, (begin, end) in others]
        written = [slice(*ends) for _, _, ends in others]
        for at in range(first, stop, step):
            end = min(stop, at + step)
            source = slice(at - first + start, end - first + start)
            yield tap, (slice(None), source, *read), (slice(None), slice(at, end), *written)


def _places(n: int, kernel: int, dilation: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield a tap of an axis, the first entry that it reads, and the range that it adds to."""
    for place in range(kernel):
        shift = dilation * (place - kernel // 2)
        if abs(shift) < n:
            yield place, max(0, shift), (max(0, -shift), min(n, n - shift))
