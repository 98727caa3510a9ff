"""Adaptive time-stepper: strides and interpolation that follow the state, by predicted errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_number, check_numbers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.timestepping.coupling import Stepper, advanced, fitting_chunk
from neurenix_ms.timestepping.forecasting import (
    QueryTimes,
    check_states,
    queries_of,
    warn_of_divergence,
)
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.windows import per_channel


class StrideErrors(Configured, nn.Module):
    """Predict the errors of every stride from the state that it starts from.

    A network much smaller than the steppers can tell where they are accurate: long strides at slow
    states, short ones at fast states. `fit_adaptive` trains it.

    Args:
        network: Network from standardized states to `2 K` numbers for K strides: first the log10 of the
            error of every stepper at the end of its stride, shortest stride first, then that of a linear
            interpolation over every stride.
        mean: Mean of every channel (axis 1) of the states.
        std: Standard deviation of every channel; errors are in these units.

    Shape:
        `(B, *D)` -> `(B, 2, K)`

    Raises:
        ValueError: If the lists are empty or differ in length, a standard deviation is 0, or the states
            have another number of channels.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> errors = StrideErrors(MLP(2, 6, [16]), mean=[0.0, 1.0], std=[1.0, 2.0])
        >>> errors(torch.zeros(5, 2)).shape
        torch.Size([5, 2, 3])
    """

    units: Tensor

    @checked
    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean = check_numbers("mean", mean, min_length=1)
        self.std = check_numbers("std", std)
        if len(self.mean) != len(self.std):
            lengths = [len(self.mean), len(self.std)]
            raise ValueError(f"mean and std must be of one length, got {lengths}")
        if 0 in self.std:
            raise ValueError(f"std must not hold 0, got {self.std}")
        self.register_buffer("units", torch.tensor([self.mean, self.std]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"states must be (B, *D) with {len(self.mean)} channels, got shape {tuple(x.shape)}"
            )
        mean, std = (per_channel(unit, x.ndim) for unit in self.units)
        errors: Tensor = self.network((x - mean) / std)
        if errors.ndim != 2 or errors.shape[1] % 2:
            raise ValueError(
                "network must return two numbers per state and stride, (B, 2 K), "
                f"got shape {tuple(errors.shape)}"
            )
        return errors.unflatten(1, (2, -1))


@dataclass
class Known:
    """Computed states of all trajectories in one list, each with the gap to the next one.

    Args:
        sample: Number of the trajectory, `(M,)`.
        time: Time in steps, `(M,)`.
        state: `(M, *D)`.
        gap: Steps to the next computed state of the trajectory, `(M,)`.
        within: Predicted log10 of the error of an interpolation over every stride, `(M, K)`.
    """

    sample: Tensor
    time: Tensor
    state: Tensor
    gap: Tensor
    within: Tensor

    def __getitem__(self, rows: Tensor) -> "Known":
        return Known(*(value[rows] for value in vars(self).values()))

    @staticmethod
    def joined(parts: "Sequence[Known]") -> "Known":
        """Return all states in one list."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Known(*(torch.cat(column) for column in columns))


class AdaptiveTimeStepper(Configured, nn.Module):
    """Forecast with strides that depend on the state: the longest with an error below a tolerance.

    A system with fast events between slow phases needs a fine resolution only during the events. This
    forecast predicts the errors of all strides from the state. It advances every trajectory by the
    largest stride with an error of at most `tolerance`; if no stride is that accurate, by the one with
    the smallest error per step. Then it computes states in between by shorter strides, as the coupled
    forecast does, but only where a linear interpolation has an error above `interpolation`. Every
    trajectory of a batch has its own strides; those with equal strides are advanced together. It needs
    fewer calls of networks than fixed strides of the same accuracy. For a system that evolves at a
    constant rate use a `HierarchicalTimeStepper`, which needs no predicted errors.

    Args:
        steppers: `TimeStepper`s of different strides in any order.
        errors: Network from states to the log10 of the errors of all strides, shortest first: a
            `StrideErrors`, or any other module of that shape.
        tolerance: Largest error at the end of a stride, in units of the standard deviations of
            `StrideErrors`. Errors of all strides of a trajectory add up.
        interpolation: Largest error of an interpolated state; `tolerance` if None.

    Shape:
        `(B, *D)` -> `(B, num_steps, *D)`, see `forecast`

    Raises:
        ValueError: If there is no stepper, two have the same stride, or a tolerance is not positive.

    Source: Hamid, Rafiq, Nahvi and Bazaz 2023, "Hierarchical deep learning-based adaptive time-stepping
    scheme for multiscale simulations" (AHiTS, arXiv 2311.05961). Its published code compares the mean
    square of the change over a stride, over the whole batch, with the tolerance. Here it is a predicted
    error of each trajectory, and states in between have a tolerance of their own.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> from neurenix_ms.timestepping import TimeStepper
        >>> steppers = [TimeStepper(MLP(2, 2, [32]), step_size) for step_size in (1, 4, 16)]
        >>> errors = StrideErrors(MLP(2, 6, [8]), mean=[0.0, 0.0], std=[1.0, 1.0])
        >>> model = AdaptiveTimeStepper(steppers, errors, tolerance=0.01)
        >>> with torch.no_grad():
        ...     model.forecast(torch.zeros(3, 2), 100).shape
        torch.Size([3, 100, 2])
    """

    @checked
    def __init__(
        self,
        steppers: Sequence[Stepper],
        errors: nn.Module,
        tolerance: float,
        interpolation: float | None = None,
    ) -> None:
        super().__init__()
        ordered = HierarchicalTimeStepper(steppers).coarse_first()[::-1]
        self.steppers = nn.ModuleList(cast(list[nn.Module], ordered))
        self.errors = errors
        self.tolerance = check_number("tolerance", tolerance, above=0)
        self.interpolation = interpolation
        if interpolation is not None:
            self.interpolation = check_number("interpolation", interpolation, above=0)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "steppers": list(self.steppers),
            "errors": self.errors,
            "tolerance": self.tolerance,
            "interpolation": self.interpolation,
        }

    @property
    def step_sizes(self) -> list[int]:
        """Return all strides, shortest first."""
        return [stepper.step_size for stepper in self.fine_first()]

    def fine_first(self) -> list[Stepper]:
        """Return the steppers in the order of increasing strides."""
        return cast(list[Stepper], list(self.steppers))

    def forward(self, x0: Tensor, num_steps: int) -> Tensor:
        return self.forecast(x0, num_steps)

    @overload
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        return_computed: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        return_computed: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @checked
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        return_computed: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the states at the times dt, 2 dt, ..., `num_steps` dt, or at `times`.

        A forecast that is not finite is returned with a warning that names the first such step. It is
        differentiable, for the strides taken, if gradients are enabled.

        Args:
            x0: States at time 0, `(B, *D)`.
            num_steps: Number of steps.
            times: Increasing times in steps of dt, from 0 to `num_steps`, in place of the grid.
            return_computed: Also return which states of the result were computed, not interpolated,
                `(B, T)`.

        Raises:
            ValueError: If `x0` is not a batch of states or is not finite, a stepper does not keep its
                shape, the errors are not two per stride, `num_steps` is below 1, or the times do not
                increase or are out of range.
        """
        check_positive(num_steps=num_steps)
        check_states(x0)
        queries = None if times is None else queries_of(times, num_steps, x0.device)
        known = self._advance(x0, num_steps)
        for stepper in self.fine_first()[-2::-1]:
            known = self._refine(known, stepper)
        wanted = torch.arange(1, num_steps + 1, device=x0.device) if queries is None else queries
        result, computed = _interpolated(known, len(x0), wanted)
        warn_of_divergence(result, queries)
        return (result, computed) if return_computed else result

    def predicted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log10 of the errors at the end of every stride, and within it, `(B, K)` each."""
        errors = call_intact(self.errors, x.detach()).detach()
        if errors.shape != (len(x), 2, len(self.steppers)):
            raise ValueError(
                "errors must return two numbers per state and stride, "
                f"{(len(x), 2, len(self.steppers))}, got shape {tuple(errors.shape)}"
            )
        at_end, within = errors.unbind(1)
        return at_end, within

    def _advance(self, x0: Tensor, num_steps: int) -> Known:
        """Advance every trajectory to its end, each by its own strides."""
        sizes = torch.tensor(self.step_sizes, device=x0.device)
        sample = torch.arange(len(x0), device=x0.device)
        time, x = torch.zeros_like(sample), x0
        parts = []
        while len(sample):
            at_end, within = self.predicted(x)
            choice = self._choice(at_end, sizes)
            gap = sizes[choice]
            on = time < num_steps
            parts.append(Known(sample, time, x, torch.where(on, gap, 0), within))
            sample, time, choice, before = sample[on], (time + gap)[on], choice[on], x[on]
            x = torch.empty_like(before)
            for k, stepper in enumerate(self.fine_first()):
                if len(rows := (choice == k).nonzero()[:, 0]):
                    x = x.index_copy(0, rows, self._call(stepper, before[rows]))
        return Known.joined(parts)

    def _choice(self, at_end: Tensor, sizes: Tensor) -> Tensor:
        """Return the index of the largest stride within the tolerance, or of the most accurate one."""
        good = at_end <= math.log10(self.tolerance)
        largest = len(sizes) - 1 - good.flip(1).int().argmax(dim=1)
        per_step = (at_end - sizes.log10()).argmin(dim=1)
        return torch.where(good.any(dim=1), largest, per_step)

    def _refine(self, known: Known, stepper: Stepper) -> Known:
        """Compute states a stride apart in the gaps over which an interpolation is not accurate."""
        sizes = torch.tensor(self.step_sizes, device=known.gap.device)
        stride = stepper.step_size
        allowed = self.tolerance if self.interpolation is None else self.interpolation
        over = torch.searchsorted(sizes, known.gap).clamp(max=len(sizes) - 1)
        error = known.within.gather(1, over[:, None])[:, 0]
        rows = ((known.gap > stride) & ~(error <= math.log10(allowed))).nonzero()[:, 0]
        if len(rows) == 0:
            return known
        parts = [Known(**vars(known) | {"gap": known.gap.index_fill(0, rows, stride)})]
        left, part = known.gap[rows] - stride, known[rows]
        while len(left):
            x = self._call(stepper, part.state)
            gap = left.clamp(max=stride)
            part = Known(part.sample, part.time + stride, x, gap, self.predicted(x)[1])
            parts.append(part)
            on = left > stride
            left, part = left[on] - stride, part[on]
        return Known.joined(parts)

    def _call(self, stepper: Stepper, x: Tensor) -> Tensor:
        return torch.cat([advanced(stepper, part) for part in x.split(fitting_chunk([stepper], x))])


def _interpolated(known: Known, num_samples: int, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of every trajectory at `times`, and which of them were computed."""
    span = int(known.time.max()) + 1  # separates the times of two trajectories
    order = (known.sample * span + known.time).argsort()
    time, state = known.time[order].double(), known.state[order]
    keys = known.sample[order] * span + time
    first = span * torch.arange(num_samples, device=times.device, dtype=torch.float64)[:, None]
    # the first computed time at or after each query, so computed states are returned exactly
    right = torch.searchsorted(keys, first + times)
    right = right.maximum(torch.searchsorted(keys, first) + 1)
    t_left, t_right = time[right - 1], time[right]
    share = ((times - t_left) / (t_right - t_left)).to(state.dtype)
    share = share.view(*share.shape, *(1,) * (state.ndim - 1))
    return torch.lerp(state[right - 1], state[right], share), (times == t_left) | (times == t_right)
