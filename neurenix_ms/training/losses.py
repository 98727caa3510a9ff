"""Loss over predictions at several scales, coarse to fine."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Described
from neurenix_ms._core.deprecation import RenamedAttribute, renamed_arguments
from neurenix_ms._core.dims import choose
from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.orders import check_descending
from neurenix_ms._core.sizes import spatial
from neurenix_ms.layers.resize import halved

Difference = Callable[[Tensor, Tensor], Tensor]
DIFFERENCES: dict[str, Difference] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class MultiScaleLoss(Described, nn.Module):
    """Sum of a loss over all scales, divided by the variance of the finest target.

    Use it for networks that predict coarse to fine, such as MSNet: the prediction at every scale is
    compared with the target averaged to its size, and the normalization gives samples of different
    amplitude equal weight.

    Args:
        loss: "mse", "l1", "huber", or a function of prediction and target that returns their mean loss.
        normalize: "variance" divides by the (unbiased) variance of the finest target, a number divides
            by that number, None does not divide. Training in tiles needs a number, because the
            variance of the whole target is not known within a tile.
        mask: Pixels or voxels that count, `(B, 1, *S)` or broadcastable to the finest target; a coarser
            one counts if any of those averaged into it does. It can be given per call as well.

    Shape:
        list of predictions, coarsest first, and list of targets of the same shapes (or the finest target
        alone, which is averaged) -> a scalar

    Raises:
        ValueError: If a name is unknown, or the lists differ in length or shapes or are not ordered
            coarsest first.

    Source: Santos et al. 2021, section 2.3.

    Examples:
        >>> import torch
        >>> target = torch.randn(1, 1, 8, 8)
        >>> loss = MultiScaleLoss()
        >>> loss([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)], target).shape
        torch.Size([])
        >>> len(loss.per_scale([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)], target))
        2
    """

    mask: Tensor | None

    normalise = RenamedAttribute("normalize")

    @renamed_arguments(normalise="normalize")
    @checked
    def __init__(
        self,
        loss: Literal["mse", "l1", "huber"] | Difference = "mse",
        normalize: Literal["variance"] | float | None = "variance",
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        if not isinstance(normalize, int | float):
            choose({"variance": "variance", None: None}, normalize, "normalize")
        elif normalize <= 0:
            raise ValueError(f"normalize must be above 0, got {normalize}")
        self.normalize = normalize
        self.difference = loss if callable(loss) else choose(DIFFERENCES, loss, "loss")
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor] | Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        losses = self.per_scale(outputs, targets, mask)
        return sum(losses[1:], start=losses[0])

    def per_scale(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor] | Tensor,
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the loss of every scale, coarsest first; their sum is the whole loss."""
        if isinstance(targets, Tensor):
            targets = averaged(targets, len(outputs))
        check_same_shapes(outputs, targets)
        check_descending(list(outputs)[::-1], "outputs", "coarsest first")
        mask = self.mask if mask is None else mask
        if mask is None:
            losses = [
                call_intact(self.difference, y, t) for y, t in zip(outputs, targets, strict=True)
            ]
            counted = targets[-1]
        else:
            # the averaged mask is above 0 if any of the averaged pixels counts
            masks = [
                (mean > 0).expand_as(t)
                for mean, t in zip(averaged(mask.float(), len(outputs)), targets, strict=True)
            ]
            triples = zip(outputs, targets, masks, strict=True)
            losses = [self.difference(y[where], t[where]) for y, t, where in triples]
            counted = targets[-1][masks[-1]]
        scale = counted.var() if self.normalize == "variance" else self.normalize or 1.0
        return [loss / scale for loss in losses]


def averaged(x: Tensor, num_scales: int) -> list[Tensor]:
    """Average a tensor to every scale, coarsest first."""
    scales = [x]
    while len(scales) < num_scales:
        scales.insert(0, halved(scales[0]))
    return scales


def check_same_shapes(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Raise unless targets have the shapes of the outputs; broadcasting would hide a mismatch."""
    if len(outputs) != len(targets):
        raise ValueError(f"expected {len(outputs)} targets, one per output, got {len(targets)}")
    for k, (y, t) in enumerate(zip(outputs, targets, strict=True)):
        if y.shape != t.shape:
            raise ValueError(
                f"target {k} must have the shape of its output {tuple(y.shape)}, "
                f"got {tuple(t.shape)} (sizes {spatial(y)} and {spatial(t)})"
            )
