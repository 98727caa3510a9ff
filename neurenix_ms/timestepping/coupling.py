"""States at time 0 and steppers of falling strides in, the states at all times between out.

Times are counted in steps of dt. The known times are kept as a few arithmetic sequences, never as a
list, and the states of all of them are advanced together, in chunks that stay in the cache.
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
    """Anything that maps states to states one stride later."""

    step_size: int

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Times:
    """The known times `start + i_1 * step_1 + i_2 * step_2 + ...`, each followed by the same gap.

    Args:
        start: The first of them.
        axes: Pairs of count and step, the counts being those of the i.
        gap: Distance from each to the next known time, which may be one of another sequence.
    """

    start: int
    axes: tuple[tuple[int, int], ...]
    gap: int

    def refined(self, stride: int) -> "list[Times]":
        """These times and those that a walk with `stride` reaches before the next known one."""
        count = math.ceil(self.gap / stride)
        left = self.gap - (count - 1) * stride
        if left == stride:
            return [Times(self.start, _extended(self.axes, count, stride), stride)]
        last = Times(self.start + (count - 1) * stride, self.axes, left)
        if count == 1:
            return [last]
        return [Times(self.start, _extended(self.axes, count - 1, stride), stride), last]

    def slices(self) -> Iterator[slice]:
        """The same times as slices, as few and as long as possible."""
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
    """One more axis; where it fills the last one's step, both are one."""
    if axes and axes[-1][1] == count * stride:
        return (*axes[:-1], (axes[-1][0] * count, stride))
    return (*axes, (count, stride))


def _joined(sequences: Sequence[Times]) -> list[Times]:
    """Simple sequences that go on one another become one."""
    result: list[Times] = []
    for new in sequences:
        if result and len(new.axes) == 1 and len(result[-1].axes) == 1:
            (count, step), (more, same_step) = result[-1].axes[0], new.axes[0]
            goes_on = result[-1].start + count * step == new.start and step == same_step
            if goes_on and result[-1].gap == new.gap:
                result[-1] = Times(result[-1].start, ((count + more, step),), new.gap)
                continue
        result.append(new)
    return result


class Coupling:
    """The states known so far, and how a finer stepper adds to them.

    Args:
        x0: States at time 0, `(B, *D)`.
        num_steps: Last time that is wanted.
        chunk_size: Number of states that go through a stepper at once.
    """

    def __init__(self, x0: Tensor, num_steps: int, chunk_size: int) -> None:
        self.num_steps = num_steps
        self.chunk_size = chunk_size
        # time t < num_steps lies in slot t; the last slot holds the first known time after those
        self.states = x0.new_empty(len(x0), num_steps + 1, *x0.shape[1:])
        self.states[:, 0] = x0
        self.known: list[Times] = []  # all known times that have a known one behind them
        self.last = 0  # the last known time before num_steps
        self.end: tuple[int, Tensor] | None = None  # the first one at or after it
        self.reach = num_steps  # how far the next stepper may go from a known time

    def refine(self, stepper: Stepper) -> None:
        """Walk from all known times as far as the next one, or as far as the stride before allows."""
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
        """States at `times`, or at every time from 1 to the last; and which of them were computed.

        Args:
            finest: Walks on from the last known time where that is before the end.
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
        # the first known time that is not before: a known time takes its own state, unmixed
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
        """Advance the states in the slots `where` again and again, each behind the one before."""
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
                # a copy: what a network reads must not change when the states are written
                x = self.states[rows, low:high:step].clone(memory_format=torch.contiguous_format)
                shape = x.shape[:2]
                x = x.flatten(0, 1)
                for i in range(1, num_walked + 1):
                    x = advanced(stepper, x)
                    shift = i * stride
                    self.states[rows, low + shift : high + shift : step] = x.unflatten(0, shape)


def advanced(stepper: Stepper, x: Tensor) -> Tensor:
    """States one stride later, if the stepper keeps their shape."""
    y = stepper(x)
    if y.shape != x.shape:
        raise ValueError(
            f"the stepper with step size {stepper.step_size} must keep the shape "
            f"{tuple(x.shape)}, got {tuple(y.shape)}"
        )
    return y


def fitting_chunk(steppers: Sequence[Stepper], x0: Tensor) -> int:
    """States per chunk, so that the widest activation stays in the cache."""
    if torch.is_grad_enabled():
        return 2**62  # backward keeps every activation anyway, and each write costs it a copy
    widest = [
        parameter.shape[0]
        for stepper in steppers
        if isinstance(stepper, nn.Module)
        for parameter in stepper.parameters()
        if parameter.ndim > 1
    ]
    channels, *grid = x0.shape[1:] or (1,)
    return max(1, VALUES_IN_CACHE // (math.prod(grid) * max(channels, *widest, 1)))
