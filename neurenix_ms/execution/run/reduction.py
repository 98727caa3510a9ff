"""Detect whether a loss is a mean or a sum over positions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import (
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

from neurenix_ms._core.dims import choose
from neurenix_ms.execution.run.ranks import Ranks

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
IN_HALF_PRECISION = 0.02
MOST_APART = 1e-9
NOISE = 0.1
FEW = 16  # pixels per axis of what one rank sends to the others


class Reduction:
    """Detector of the reduction of a loss: its values on halves of a tile and on two joined tiles.

    A loss that averages over selected positions only, or divides by a statistic of all of them, raises
    on the first tile where that matters.
    """

    def __init__(
        self, loss: Callable[[Any, Any], Tensor], reduction: Literal["mean", "sum"] | None
    ) -> None:
        choose(dict.fromkeys(("mean", "sum", None)), reduction, "reduction")
        self.loss = loss
        self.possible = {"mean", "sum"} if reduction is None else {reduction}
        self.first: tuple[Any, Any] | None = None

    @torch.no_grad()
    def weight(self, output: Any, target: Any, shares: Sequence[float], dims: int) -> float:
        """Return the weight of this core's loss in that of the whole output."""
        output = tree_map(_disturbed, output)
        for axis in range(-dims, 0):
            self._check_split(output, target, axis)
        if self.first is None:
            self.first = (output, target)
        self._check_joined(self.first, (tree_map(_disturbed, output), target), dims)
        if "sum" in self.possible:
            return 1.0
        if max(shares) - min(shares) > MOST_APART:
            raise ValueError(
                "a mean over several outputs needs tiles that hold the same fraction of each, got "
                f"fractions {[round(s, 6) for s in shares]}; take an input size that is a multiple of "
                "the stride"
            )
        return shares[0]

    @torch.no_grad()
    def agree(self, ranks: Ranks, dims: int) -> None:
        """Raise unless one reduction fits the cores of all ranks.

        Tiles of one rank may all hold one class, or the same number of valid pixels, so the first core
        of each rank is joined with the first of all.
        """
        if ranks.size == 1:
            return
        first = ranks.first(None if self.first is None else _cropped(self.first, dims))
        if first is not None and self.first is not None:
            device = next(t.device for t in tree_leaves(self.first) if isinstance(t, Tensor))
            first = tree_map_only(Tensor, lambda t: t.to(device), first)
            self._check_joined(first, self.first, dims)
        everyone = ranks.gathered(self.possible)
        if not set.intersection(*everyone):
            told = [sorted(possible) for possible in everyone]
            raise ValueError(
                "loss must be a mean or a sum of a local term over all positions, the same on all "
                f"ranks, got {told} by rank"
            )

    def _check_split(self, output: Any, target: Any, axis: int) -> None:
        """Compare the loss of a core with those of its first third and of the rest."""
        leaves, structure = tree_flatten((output, target))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shortest = min(leaf.shape[axis] for leaf in tensors)
        cut = max(1, shortest // 3)
        if shortest < 2 or any(leaf.shape[axis] * cut % shortest for leaf in tensors):
            return

        def part(first: bool) -> Any:
            pieces = []
            for leaf in leaves:
                if isinstance(leaf, Tensor):
                    at = leaf.shape[axis] * cut // shortest
                    end = leaf.shape[axis]
                    leaf = leaf.narrow(axis, 0, at) if first else leaf.narrow(axis, at, end - at)
                pieces.append(leaf)
            return tree_unflatten(pieces, structure)

        self._check(part(True), part(False), (output, target), cut / shortest)

    def _check_joined(self, first: Any, here: Any, dims: int) -> None:
        """Compare the loss of two cores as one batch with those of each."""
        mine, structure = tree_flatten(first)
        theirs = tree_flatten(here)[0]
        ours: list[list[Any]] = [[], [], []]
        for a, b in zip(mine, theirs, strict=True):
            if isinstance(a, Tensor):
                for axis in range(-dims, 0):
                    shared = min(a.shape[axis], b.shape[axis])
                    a, b = a.narrow(axis, 0, shared), b.narrow(axis, 0, shared)
            both = torch.cat([a, b]) if isinstance(a, Tensor) else a
            for pieces, piece in zip(ours, (a, b, both), strict=True):
                pieces.append(piece)
        a, b, both = (tree_unflatten(pieces, structure) for pieces in ours)
        self._check(a, b, both, 0.5)

    def _check(self, a: Any, b: Any, both: Any, share: float) -> None:
        # copies, because the loss may overwrite its arguments
        pieces = (tree_map(_copied, piece) for piece in (a, b, both))
        one, other, together = (self.loss(*piece) for piece in pieces)
        size = sum(abs(float(value)) for value in (one, other, together))
        rounding = ROUNDING.get(together.dtype, IN_HALF_PRECISION) * size
        by_rule = {"sum": one + other, "mean": share * one + (1 - share) * other}
        fitting = {
            name for name, value in by_rule.items() if abs(float(value - together)) <= rounding
        }
        if not self.possible & fitting:
            wanted = " or a ".join(sorted(self.possible))
            raise ValueError(
                f"loss must be a {wanted} of a local term over all positions, got {float(one):.6g} and "
                f"{float(other):.6g} for two parts (fractions {share:.3g} and {1 - share:.3g}) and "
                f"{float(together):.6g} for both; write a mean over selected positions (class weights, "
                "ignore_index) as a sum divided by a number known beforehand"
            )
        self.possible &= fitting


def _cropped(piece: Any, dims: int) -> Any:
    """Return the first few pixels of all tensors, the same fraction of each."""
    leaves, structure = tree_flatten(piece)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for axis in range(-dims, 0):
        sizes = [t.shape[axis] for t in tensors]
        most = min(sizes, default=0) // FEW
        parts = max((k for k in range(1, most + 1) if math.gcd(*sizes) % k == 0), default=1)
        tensors = [t.narrow(axis, 0, t.shape[axis] // parts) for t in tensors]
    narrowed = iter(tensors)
    # copies, because a view is sent with all of the memory that it refers to
    cropped = [
        next(narrowed).cpu().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves
    ]
    return tree_unflatten(cropped, structure)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _disturbed(y: Tensor) -> Tensor:
    """Perturb the values, because all reductions of a perfect prediction's loss are equal."""
    if not y.is_floating_point():
        return y
    wave = torch.arange(y.numel(), device=y.device, dtype=torch.float32).mul_(0.7).sin_()
    return y.detach() + NOISE * wave.reshape(y.shape).to(y.dtype)
