"""Hierarchical time-stepper: forecast with coarse strides first and finer ones in between."""

from collections.abc import Sequence
from typing import Any, Literal, cast, overload

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_integers
from neurenix_ms._core.config import Configured
from neurenix_ms.timestepping.coupling import Stepper
from neurenix_ms.timestepping.forecasting import QueryTimes, forecast


class CallableStepper(nn.Module):
    """Module around a function of states with a `step_size`.

    Shape:
        `(B, *D)` -> the same
    """

    def __init__(self, function: Stepper) -> None:
        super().__init__()
        self.function = function
        self.step_size = function.step_size

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class HierarchicalTimeStepper(Configured, nn.Module):
    """Forecast with steppers of several strides: the coarsest first, the finer ones in between.

    The coarsest stepper needs few steps to the end, so its error accumulates slowly. The finer ones
    start from its states and advance only to the next of them, for all intervals at once. So a long
    forecast is as accurate as the coarse steppers and as detailed as the fine ones, with few calls of
    networks on large batches. Use it if no single stride is both accurate and detailed. For a system
    without slow scales the finest stepper alone is better; `select_strides` tells.

    Args:
        steppers: `TimeStepper`s of different strides in any order. Any of them, usually the finest,
            may be an `IntegratorStepper` or another callable `x -> x` with a `step_size`.

    Shape:
        `(B, *D)` -> `(B, num_steps, *D)`, see `forecast`

    Raises:
        ValueError: If there is no stepper, or two have the same stride.

    Source: Liu, Kutz, Brunton 2020, "Hierarchical Deep Learning of Multiscale Differential Equation
    Time-Steppers", algorithm 1. If a stride does not divide the next coarser one, a stepper stops
    before the next known state, which the published code overwrites.

    Examples:
        >>> import torch
        >>> from neurenix_ms.layers.mlp import MLP
        >>> from neurenix_ms.timestepping import TimeStepper
        >>> model = HierarchicalTimeStepper([TimeStepper(MLP(2, 2, [32]), s) for s in (1, 4, 16)])
        >>> with torch.no_grad():
        ...     model.forecast(torch.zeros(3, 2), 100).shape
        torch.Size([3, 100, 2])
    """

    @checked
    def __init__(self, steppers: Sequence[Stepper]) -> None:
        super().__init__()
        if len(steppers) == 0:
            raise ValueError("steppers must have at least one stepper, got none")
        for i, stepper in enumerate(steppers):
            check_integer(f"steppers[{i}].step_size", getattr(stepper, "step_size", None), 1)
        strides = sorted(stepper.step_size for stepper in steppers)
        if len(set(strides)) < len(strides):
            raise ValueError(f"steppers must have different strides, got {strides}")
        self.steppers = nn.ModuleList(
            stepper if isinstance(stepper, nn.Module) else CallableStepper(stepper)
            for stepper in steppers
        )

    @property
    def config(self) -> dict[str, Any]:
        return {"steppers": list(self.steppers)}

    @property
    def step_sizes(self) -> list[int]:
        """Return all strides, coarsest first."""
        return [stepper.step_size for stepper in self.coarse_first()]

    def coarse_first(self) -> list[Stepper]:
        """Return the steppers in the order of decreasing strides."""
        steppers = cast(list[Stepper], list(self.steppers))
        return sorted(steppers, key=lambda stepper: -stepper.step_size)

    def forward(self, x0: Tensor, num_steps: int) -> Tensor:
        return self.forecast(x0, num_steps)

    @overload
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        chunk_size: int | None = None,
        return_indices: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        chunk_size: int | None = None,
        return_indices: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @checked
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        chunk_size: int | None = None,
        return_indices: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the states at the times dt, 2 dt, ..., `num_steps` dt, or at `times`.

        States at times that no stride reaches are interpolated linearly. A forecast that is not finite
        is returned with a warning that names the first such step. Under `torch.no_grad()` it runs in
        chunks, with little more memory than its result; with gradients enabled it is differentiable as
        a whole.

        Args:
            x0: States at time 0, `(B, *D)`.
            num_steps: Number of steps.
            times: Increasing times in steps of dt, from 0 to `num_steps`, in place of the grid.
            chunk_size: Number of states per call of a stepper; by default as many as let the widest
                activation fit into the cache, and all of them if gradients are recorded.
            return_indices: Also return the rows of the result that were computed, not interpolated.

        Raises:
            ValueError: If `x0` is not a batch of states or is not finite, a stepper does not keep its
                shape, `num_steps` is below 1, or the times do not increase or are out of range.
        """
        result, rows = forecast(
            self.coarse_first(), x0, num_steps, times=times, chunk_size=chunk_size
        )
        return (result, rows) if return_indices else result

    @checked
    def only(self, step_sizes: Sequence[int]) -> "HierarchicalTimeStepper":
        """Return a hierarchy of some of the strides, which shares its steppers with this one."""
        check_integers("step_sizes", step_sizes, 1, min_length=1)
        if missing := sorted(set(step_sizes) - set(self.step_sizes)):
            raise ValueError(f"step_sizes must be among {self.step_sizes}, got {missing}")
        return HierarchicalTimeStepper(
            [s for s in self.coarse_first() if s.step_size in step_sizes]
        )
