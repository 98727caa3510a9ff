"""Checks of the order of a list of feature maps."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import one_call, sizes_are_open

# allowed difference between twice the coarser and the finer size
ROUNDING = 2  # pixels: halving rounds up or down, or loses a pixel at the border
LOSS = 4  # a quarter of the finer size: convolutions without padding crop the border


@one_call
def check_halving(maps: Sequence[Tensor], what: str) -> None:
    """Raise unless every axis of each feature map is about half as long as in the one before.

    A size may differ from the half by one pixel, or by an eighth of the finer size if that is more, as
    in encoders without padding.

    Args:
        maps: Feature maps, finest first.
        what: Name of the list, for the message.
    """
    if sizes_are_open():
        return
    sizes = [spatial(x) for x in maps]
    for fine, coarse in pairwise(sizes):
        pairs = zip(fine, coarse, strict=True)
        if any(abs(2 * n - m) > max(ROUNDING, m // LOSS) for m, n in pairs):
            raise ValueError(
                f"{what} must come finest first, each about half the size of the one before, "
                f"got sizes {sizes}"
            )


@one_call
def check_descending(maps: Sequence[Tensor], what: str, order: str = "finest first") -> None:
    """Raise if an axis of a feature map is longer than in the one before.

    Args:
        maps: Feature maps, sorted by decreasing size.
        what: Name of the list, for the message.
        order: The order in words, for the message.
    """
    if sizes_are_open():
        return
    sizes = [spatial(x) for x in maps]
    for fine, coarse in pairwise(sizes):
        if any(n > m for m, n in zip(fine, coarse, strict=True)):
            raise ValueError(
                f"{what} must come {order}, got sizes "
                f"{sizes if order == 'finest first' else sizes[::-1]}"
            )


@one_call
def check_order_of_scales(maps: Sequence[Tensor], scales: Sequence[float]) -> None:
    """Raise if a feature map of a larger scale is shorter than one of a smaller scale."""
    if sizes_are_open():
        return
    sizes = [spatial(x) for x in maps]
    largest_first = sorted(zip(scales, sizes, strict=True), key=lambda pair: -pair[0])
    for (scale, fine), (other, coarse) in pairwise(largest_first):
        if scale > other and any(n > m for m, n in zip(fine, coarse, strict=True)):
            raise ValueError(
                f"features must come in the order of the scales {list(scales)}, got sizes {sizes}"
            )
