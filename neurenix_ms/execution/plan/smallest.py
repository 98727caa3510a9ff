"""Find the smallest inputs, and pieces of inputs, that a model takes."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.differences import can_hold_nan
from neurenix_ms.execution.plan.lengths import Lengths
from neurenix_ms.execution.plan.observation import constants, observe
from neurenix_ms.execution.plan.sites import Part, Site

Answer = Callable[[int, Site], Tensor]
MOST_STEPS = 64


def shortest(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    lengths: Lengths,
    remainder: tuple[int, ...],
    channels: int,
    like: Tensor,
) -> tuple[int, ...]:
    """Return the smallest input size of this remainder on which every layer depends on the input.

    On a smaller one some layers may read padding only, so NaN everywhere would not show in their
    results, although it shows on a larger input.
    """

    def answers(size: tuple[int, ...]) -> Answer:
        return constants

    return _smallest(model, parts, lengths.period, remainder, channels, like, answers)


def shortest_piece(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    lengths: Lengths,
    short: tuple[int, ...],
    channels: int,
    like: Tensor,
) -> tuple[int, ...]:
    """Return the smallest piece of an input that the model takes, with crops for parts run whole."""
    if lengths.period == lengths.stride:
        return short

    def answers(size: tuple[int, ...]) -> Answer:
        def given(number: int, site: Site) -> Tensor:
            _, result = lengths.site(number)
            if not isinstance(site, Part) or result is None:
                return constants(number, site)
            shape = list(lengths.run.sites[number][1].shape)
            for line, n in zip(result, size, strict=True):
                shape[line.dim] = line.length(0, n, n)
            return site.x.new_full(shape, math.nan)

        return given

    remainder = tuple(n % s for n, s in zip(short, lengths.stride, strict=True))
    return _smallest(model, parts, lengths.stride, remainder, channels, like, answers)


def _smallest(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    step: tuple[int, ...],
    remainder: tuple[int, ...],
    channels: int,
    like: Tensor,
    answers: Callable[[tuple[int, ...]], Answer],
) -> tuple[int, ...]:
    def untouched(steps: int) -> int:
        size = tuple(steps * s + r for s, r in zip(step, remainder, strict=True))
        x = torch.full((1, channels, *size), math.nan, dtype=like.dtype, device=like.device)
        tensors = [t for _, t in observe(model, x, parts, answers(size), asked="nan").tensors()]
        return sum(not bool(t.isnan().any()) for t in tensors if can_hold_nan(t))

    for steps in range(1, MOST_STEPS):
        try:
            enough = untouched(steps) <= untouched(2 * steps)
        except (ValueError, RuntimeError):
            continue  # too small for the model
        if enough:
            return tuple(steps * s + r for s, r in zip(step, remainder, strict=True))
    raise ValueError(
        f"a model run in tiles must take small inputs, got {type(model).__name__}, which takes none of "
        f"up to {MOST_STEPS} strides of {step}; run it on the whole input"
    )
