"""Sums over predicted regions, true regions and their overlap in a segmentation."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Proxy

from neurenix_ms._core.tracing import sizes_are_open

ROUNDING = 1e-3  # of interpolated masks and low precision
Sums = tuple[Tensor, Tensor, Tensor]


def region_sums(
    logits: Tensor,
    target: Tensor,
    *,
    squared: bool = False,
    multi_label: bool = False,
    ignore_index: int | None = None,
) -> Sums:
    """Sum probabilities, true regions, and their product over all pixels, per sample and class.

    Args:
        logits: `(B, C, *S)`; a sigmoid is applied to a single channel, a softmax to several.
        target: Classes `(B, *S)`, or probabilities `(B, C, *S)`.
        squared: Sum the squares of probabilities and true regions.
        multi_label: Apply a sigmoid to every channel; the target has a value per channel.
        ignore_index: Value of classes at the pixels that do not count.

    Returns:
        Product, probabilities and true regions, each `(B, C)`.

    Raises:
        ValueError: If the target has another shape, a class is not in [0, C), or a probability is
            outside [0, 1].
    """
    _check_shape(logits, target)
    num_classes = logits.shape[1]
    by_channel = target.shape == logits.shape
    if multi_label and num_classes > 1 and not by_channel:
        raise ValueError(
            f"multi_label needs a target with a value per channel, {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}"
        )
    counted: Tensor | None = None
    if ignore_index is not None:
        counted, target = _without(target, ignore_index, num_classes)
    if by_channel or num_classes == 1:
        _check_probabilities(target)
        truth = target.reshape(logits.shape).to(logits.dtype)
    else:
        _check_classes(target, num_classes)
        truth = _one_hot(target, logits)
    separate = multi_label or num_classes == 1
    predicted = logits.sigmoid() if separate else logits.softmax(dim=1)
    if counted is not None:
        mask = counted.reshape(len(logits), 1, *logits.shape[2:]).to(logits.dtype)
        predicted, truth = predicted * mask, truth * mask
    pixels = tuple(range(2, logits.ndim))
    both = (predicted * truth).sum(pixels)
    if squared:
        predicted, truth = predicted.square(), truth.square()
    return both, predicted.sum(pixels), truth.sum(pixels)


def _without(target: Tensor, ignore_index: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return which pixels count, and the target with class 0 at the others."""
    one_channel = num_classes == 1 or target.ndim < 3 or target.shape[1] != num_classes
    if target.is_floating_point() or not one_channel:
        raise ValueError(
            f"ignore_index needs a target of classes, one integer per pixel, got {target.dtype} "
            f"{tuple(target.shape)}"
        )
    counted = target != ignore_index
    return counted, target * counted


def _one_hot(classes: Tensor, logits: Tensor) -> Tensor:
    """Return 1 in the channel of the class and 0 elsewhere, in the shape `(B, C, *S)` of the logits.

    Comparing floating point numbers is several times as fast as comparing integers or scattering ones.
    """
    numbers = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
    apart = classes.unsqueeze(1).to(logits.dtype) - numbers.view(-1, *(1,) * (logits.ndim - 2))
    if not sizes_are_open() and torch._C._functorch.is_functorch_wrapped_tensor(apart):
        return (apart == 0).to(apart.dtype)  # vmap does not support in-place comparison
    return apart.eq_(0)


def _check_shape(logits: Tensor, target: Tensor) -> None:
    classes = logits.shape[:1] + logits.shape[2:]
    if logits.ndim < 3:
        raise ValueError(f"logits must be (B, C, *S), got shape {tuple(logits.shape)}")
    if target.shape != logits.shape and (
        target.shape != classes or target.is_floating_point() or target.is_complex()
    ):
        raise ValueError(
            f"target must be classes {tuple(classes)} or probabilities {tuple(logits.shape)}, "
            f"got {target.dtype} {tuple(target.shape)}"
        )


def _check_probabilities(target: Tensor) -> None:
    least, most = _range(target)
    margin = ROUNDING if target.is_floating_point() else 0
    if not -margin <= least <= most <= 1 + margin:
        raise ValueError(
            "target must be in [0, 1] if it holds probabilities or there is one channel, got values "
            f"from {least:g} to {most:g}; divide a mask by its largest value"
        )


def _check_classes(target: Tensor, num_classes: int) -> None:
    least, most = _range(target)
    if not 0 <= least <= most < num_classes:
        raise ValueError(
            f"target must hold classes from 0 to {num_classes - 1}, one per channel of the logits, "
            f"got values from {least} to {most}; relabel other pixels"
        )


def _range(target: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value, or 0 if values cannot be read.

    They cannot be read under compilers, tracers and function transforms, and of tensors without memory.
    """
    hidden = sizes_are_open() or isinstance(target, Proxy | FakeTensor) or target.is_meta
    if hidden or torch._C._functorch.is_functorch_wrapped_tensor(target) or target.numel() == 0:
        return 0, 0
    least, most = target.detach().aminmax()
    return least.item(), most.item()
