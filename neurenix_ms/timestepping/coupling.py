"""Couple steppers of decreasing strides to compute the states at all times from those at time 0.

Times are counted in steps of dt. The known times are stored as a few arithmetic sequences, not as a
list, and the states at all of them are advanced together, in chunks that fit into the CPU cache.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
from torch import Tensor, nn

VALUES_IN_CACHE = 3 * 2**17  # of one activation of a chunk; 3072 rows of width 128


class Stepper(Protocol):
    """Protocol of a callable that maps states to the states one stride later."""

    step_size: int

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Times:
    """Known times `start + i_1 * step_1 + i_2 * step_2 + ...`, each followed by the same gap.

    Args:
        start: The first time.
        axes: Pairs of count and step, one per index i.
        gap: Distance from each time to the next known time, which may belong to another sequence.
    """

    start: int
    axes: tuple[tuple[int, int], ...]
    gap: int

    def refined(self, stride: int) -> "list[Times]":
        """Return these times and those reached from them with `stride` before the next known time."""
        count = math.ceil(self.gap / stride)
        left = self.gap - (count - 1) * stride
        if left == stride:
            return [Times(self.start, _extended(self.axes, count, stride), stride)]
        last = Times(self.start + (count - 1) * stride, self.axes, left)
        if count == 1:
            return [last]
        return [Times(self.start, _extended(self.axes, count - 1, stride), stride), last]

    def slices(self) -> Iterator[slice]:
        """Yield the same times as slices, as few and as long as possible."""
        longest = max(self.axes)
        others = list(self.axes)
        others.remove(longest)
        count, step = longest
        for offsets in product(*(range(0, n * s, s) for n, s in others)):
            first = self.start + sum(offsets)
            yield slice(first, first + (count - 1) * step + 1, step)


def _extended(
    axes: tuple[tuple[int, int], ...], count: int, stride: int
) -> tuple[tuple[int, int], ...]:
    """Return the axes with one more; an axis that fills the step of the last one is merged with it."""
    if axes and axes[-1][1] == count * stride:
        return (*axes[:-1], (axes[-1][0] * count, stride))
    return (*axes, (count, stride))


def _joined(sequences: Sequence[Times]) -> list[Times]:
    """Merge sequences with one axis that continue one another."""
    result: list[Times] = []
    for new in sequences:
        if result and len(new.axes) == 1 and len(result[-1].axes) == 1:
            (count, step), (more, same_step) = result[-1].axes[0], new.axes[0]
            continues = result[-1].start + count * step == new.start and step == same_step
            if continues and result[-1].gap == new.gap:
                result[-1] = Times(result[-1].start, ((count + more, step),), new.gap)
                continue
        result.append(new)
    return result


class Coupling:
    """States known so far, to which finer steppers add those in between.

    Args:
        x0: States at time 0, `(B, *D)`.
        num_steps: Last time of the forecast.
        chunk_size: Number of states per call of a stepper.
    """

    def __init__(self, x0: Tensor, num_steps: int, chunk_size: int) -> None:
        self.num_steps = num_steps
        self.chunk_size = chunk_size
        # slot t holds time t < num_steps; the last slot holds the first known time after those
        self.states = x0.new_empty(len(x0), num_steps + 1, *x0.shape[1:])
        self.states[:, 0] = x0
        self.known: list[Times] = []  # all known times that are followed by a known one
        self.last = 0  # the last known time before num_steps
        self.end: tuple[int, Tensor] | None = None  # the first known time at or after num_steps
        self.reach = num_steps  # the largest distance of the next stepper from a known time

    def refine(self, stepper: Stepper) -> None:
        """Advance from every known time up to the next one, or as far as the stride before allows."""
        stride = stepper.step_size
        for times in self.known:
            num_walked = math.ceil(times.gap / stride) - 1
            for where in times.slices():
                self._walk(stepper, where, num_walked)
        finer = [part for times in self.known for part in times.refined(stride)]
        count = math.ceil((self.num_steps - self.last) / stride)
        x = self.states[:, self.last].clone()
        for i in range(1, count):
            x = advanced(stepper, x)
            self.states[:, self.last + i * stride] = x
        if count > 1:
            finer.append(Times(self.last, ((count - 1, stride),), stride))
        self.known = _joined(finer)
        first_after = self.last + count * stride
        self.last = first_after - stride
        allowed = count <= self.reach // stride
        if allowed and (self.end is None or first_after < self.end[0]):
            self.end = (first_after, advanced(stepper, x))
        self.reach = stride - 1

    def read(self, finest: Stepper, times: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the states at `times`, or at every time from 1 to the last, and which were computed.

        Args:
            finest: Stepper that continues from the last known time if that is before the end.
            times: Increasing times from 0 to the end.
        """
        end = self.end
        if end is None:
            x = self.states[:, self.last].clone()
            end = (self.last + finest.step_size, advanced(finest, x))
        self.states[:, -1] = end[1]
        known = self._known_times(end[0])
        if times is None:
            if end[0] == self.num_steps and len(known) == self.num_steps + 1:
                return self.states[:, 1:], None
            times = torch.arange(1, self.num_steps + 1, device=self.states.device)
        # the first known time at or after each query, so known times take their own states exactly
        right = torch.searchsorted(known, times.to(known.dtype)).clamp(min=1)
        t_left, t_right = known[right - 1], known[right]
        share = ((times - t_left) / (t_right - t_left)).to(self.states.dtype)
        slots = known.long().clamp(max=self.num_steps)
        mixed = torch.lerp(
            self.states.index_select(1, slots[right - 1]),
            self.states.index_select(1, slots[right]),
            share.view(-1, *(1,) * (self.states.ndim - 2)),
        )
        return mixed, torch.isin(times.to(known.dtype), known)

    def _known_times(self, end: int) -> Tensor:
        device = self.states.device
        parts = [
            torch.arange(where.start, where.stop, where.step, device=device)
            for times in self.known
            for where in times.slices()
        ]
        ends = torch.tensor([self.last, end], device=device)
        return torch.cat([*parts, ends]).sort().values.double()

    def _walk(self, stepper: Stepper, where: slice, num_walked: int) -> None:
        """Advance the states in the slots `where` repeatedly, and store the results in later slots."""
        if num_walked == 0:
            return
        stride, step = stepper.step_size, where.step
        num_samples = len(self.states)
        batch = max(1, min(num_samples, self.chunk_size))
        span = max(1, self.chunk_size // batch) * step
        for low in range(where.start, where.stop, span):
            high = min(low + span, where.stop)
            for first in range(0, num_samples, batch):
                rows = slice(first, first + batch)
                # a copy, because a network's input must not change when the states are written
                x = self.states[rows, low:high:step].clone(memory_format=torch.contiguous_format)
                shape = x.shape[:2]
                x = x.flatten(0, 1)
                for i in range(1, num_walked + 1):
                    x = advanced(stepper, x)
                    shift = i * stride
                    self.states[rows, low + shift : high + shift : step] = x.unflatten(0, shape)


def advanced(stepper: Stepper, x: Tensor) -> Tensor:
    """Return the states one stride later; raise unless the stepper keeps their shape."""
    y = stepper(x)
    if y.shape != x.shape:
        raise ValueError(
            f"the stepper with step size {stepper.step_size} must keep the shape "
            f"{tuple(x.shape)}, got {tuple(y.shape)}"
        )
    return y


def fitting_chunk(steppers: Sequence[Stepper], x0: Tensor) -> int:
    """Return the number of states per chunk for which the widest activation fits into the cache."""
    if torch.is_grad_enabled():
        return 2**62  # backward keeps every activation anyway, and every in-place write adds a copy
    widest = [
        parameter.shape[0]
        for stepper in steppers
        if isinstance(stepper, nn.Module)
        for parameter in stepper.parameters()
        if parameter.ndim > 1
    ]
    channels, *grid = x0.shape[1:] or (1,)
    return max(1, VALUES_IN_CACHE // (math.prod(grid) * max(channels, *widest, 1)))
