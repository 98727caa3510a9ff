"""Deep supervision loss for outputs at several resolutions, and Dice loss."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import choose
from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.orders import check_descending
from neurenix_ms._core.sizes import spatial
from neurenix_ms.layers.resize import Resize
from neurenix_ms.training.overlap import region_sums


class DeepSupervisionLoss(Described, nn.Module):
    """Compare outputs at several resolutions with one target, each at its own resolution.

    Use it for networks with a head per level, such as `PyramidNetwork(return_pyramid=True)`: the deep
    levels then learn from the target itself, not only through the finest output. The target is resized
    to every output: floating point targets by averaging, classes (integers) by the nearest pixel or
    voxel. `MultiScaleLoss` is the loss for networks that predict coarse to fine.

    Args:
        loss: Function of an output and the target at its size that returns a scalar.
        weights: Weight of every output, in their order; None takes 1, 1/2, 1/4 and so on, for outputs
            ordered finest first. All are divided by their sum.

    Shape:
        list of `(B, C, *S_i)` and a target `(B, C, *S)`, or classes `(B, *S)` -> a scalar

    Raises:
        ValueError: If the list is empty or has another length than the weights, the weights are negative
            or all 0, or there are none and the outputs are not ordered finest first.

    Source: Lee et al. 2015, "Deeply-Supervised Nets", equation 3; weights of Isensee et al. 2021,
    "nnU-Net", supplementary note 2.

    Examples:
        >>> loss = DeepSupervisionLoss(nn.MSELoss())
        >>> loss([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], torch.ones(1, 1, 8, 8))
        tensor(1.)
    """

    @checked
    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if weights is not None and (min(weights, default=0) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be 0 or more, and not all 0, got {list(weights)}")
        self.loss = loss
        self.weights = None if weights is None else list(weights)

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        if not outputs or (self.weights is not None and len(outputs) != len(self.weights)):
            wanted = "one or more" if self.weights is None else str(len(self.weights))
            raise ValueError(f"expected {wanted} outputs, got {len(outputs)}")
        if self.weights is None:
            check_descending(outputs, "outputs without weights")
        weights = self.weights or [0.5**k for k in range(len(outputs))]
        losses = [
            weight / sum(weights) * call_intact(self.loss, y, _at_size(target, y))
            for weight, y in zip(weights, outputs, strict=True)
        ]
        return sum(losses[1:], start=losses[0])


def _at_size(target: Tensor, output: Tensor) -> Tensor:
    size = spatial(output)
    if target.is_floating_point():
        return Resize("area", _axes(output))(target, size)
    if target.ndim == output.ndim:
        return _nearest(target, size)
    return _nearest(target.unsqueeze(1), size).squeeze(1)


def _axes(x: Tensor) -> Literal[1, 2, 3]:
    return choose({3: 1, 4: 2, 5: 3}, x.ndim, "rank of an output")


def _nearest(classes: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class in the middle of every coarse pixel or voxel."""
    for axis, n in enumerate(size, start=2):
        middle = (2 * torch.arange(n, device=classes.device) + 1) * classes.shape[axis] // (2 * n)
        classes = classes.index_select(axis, middle)
    return classes


class DiceLoss(Described, nn.Module):
    """One minus the Dice overlap of predicted and true regions, averaged over classes.

    Unlike cross entropy it does not depend on the size of a region, so small structures count as much
    as large ones. Its gradient is noisy early in training; adding cross entropy helps.

    Args:
        smooth: Number of pixels or voxels added to numerator and denominator. A class that is neither
            present nor predicted then has loss 0, instead of 0 / 0.
        include_background: Include class 0 (of several).
        batch: Compute the overlap over the whole batch instead of sample by sample, which is more
            stable if classes are missing in most samples.
        jaccard: Divide by the union of the regions instead of the sum of their sizes.
        squared: Take the squares of probabilities in the denominator.
        weight: Weight of every class that is included, at least 0; the mean is taken after it.
        multi_label: Apply a sigmoid to every channel, for classes that overlap; the target has a value
            per channel.
        ignore_index: Class of pixels that do not count.
        reduction: "mean", "sum", or "none" for the loss of every sample and class.

    Shape:
        logits `(B, C, *S)` and classes `(B, *S)`, or probabilities `(B, C, *S)` -> a scalar, or with
        reduction "none" `(B, C)`, with `batch` `(C,)`. A sigmoid is applied to a single channel, a
        softmax to several.

    Raises:
        ValueError: If `smooth` or a weight is negative, their number is not that of the classes, no
            class is left, the target has another shape, a class is not in [0, C), or a probability is
            outside [0, 1] (as in masks of 0 and 255). Values are not checked in a compiled or traced
            call.

    Source: Milletari et al. 2016, "V-Net", section 3 (`squared=True`); the sum in place of the sum of
    squares Drozdzal et al. 2016. Deviation: with `smooth=0` a class that is neither present nor
    predicted has loss 0 too.

    Examples:
        >>> classes = torch.tensor([[0, 1, 1, 2]])
        >>> logits = 100.0 * nn.functional.one_hot(classes, 3).movedim(-1, 1)
        >>> DiceLoss()(logits, classes)
        tensor(0.)
    """

    weight: Tensor | None

    @checked
    def __init__(
        self,
        smooth: float = 1.0,
        *,
        include_background: bool = True,
        batch: bool = False,
        jaccard: bool = False,
        squared: bool = False,
        weight: Sequence[float] | None = None,
        multi_label: bool = False,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not smooth >= 0:
            raise ValueError(f"smooth must be 0 or more, got {smooth}")
        if weight is not None and min(weight, default=-1.0) < 0:
            raise ValueError(f"weight must hold numbers of at least 0, got {list(weight)}")
        self.smooth = smooth
        self.include_background = include_background
        self.batch = batch
        self.jaccard = jaccard
        self.squared = squared
        self.multi_label = multi_label
        self.ignore_index = ignore_index
        self.reduction = reduction
        table = None if weight is None else torch.tensor(list(weight), dtype=torch.float32)
        self.register_buffer("weight", table, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        num_classes = logits.shape[1]
        if not self.include_background and num_classes < 2:
            raise ValueError(
                f"include_background=False needs two classes or more, got {num_classes}"
            )
        first = 0 if self.include_background else 1
        if self.weight is not None and len(self.weight) != num_classes - first:
            raise ValueError(
                f"weight must have one number for each of the {num_classes - first} classes, "
                f"got {len(self.weight)}"
            )
        logits = logits.float() if logits.dtype in (torch.half, torch.bfloat16) else logits
        found = region_sums(
            logits,
            target,
            squared=self.squared,
            multi_label=self.multi_label,
            ignore_index=self.ignore_index,
        )
        sums = (one[:, first:] for one in found)
        both, predicted, true = (one.sum(0) for one in sums) if self.batch else sums
        loss = 1 - self._overlap(both, predicted, true)
        if self.weight is not None:
            loss = loss * self.weight.to(loss.dtype)
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else loss.mean()

    def _overlap(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        if self.jaccard:
            predicted, true = 2 * predicted - both, 2 * true - both
        above, below = 2 * both + self.smooth, predicted + true + self.smooth
        if self.smooth > 0:
            return above / below
        nothing = below <= 0
        return torch.where(nothing, 1.0, above / torch.where(nothing, 1.0, below))
