"""Select the strides of a trained hierarchy by the error of the coupled forecast."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_number
from neurenix_ms.timestepping.forecasting import check_finite, started
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper


@dataclass(frozen=True)
class Selection:
    """Result of `select_strides`: the hierarchy that is kept, and the errors of all sets tried.

    The table shows how much each stride improves the forecast; read it before deploying a hierarchy.

    Args:
        hierarchy: The steppers that are kept, shared with the hierarchy they were chosen from.
        table: Strides, coarsest first, and mean squared error of every set that was tried.

    Examples:
        >>> from neurenix_ms.timestepping import IntegratorStepper
        >>> steppers = [IntegratorStepper(torch.neg, 0.01, stride) for stride in (1, 4)]
        >>> trajectory = torch.exp(-0.01 * torch.arange(9.0)).view(1, 9, 1)
        >>> chosen = select_strides(HierarchicalTimeStepper(steppers), trajectory, tolerance=0.1)
        >>> [strides for strides, _ in chosen.table][0]
        (4, 1)
    """

    hierarchy: HierarchicalTimeStepper
    table: list[tuple[tuple[int, ...], float]]


@checked
@torch.no_grad()
def select_strides(
    hierarchy: HierarchicalTimeStepper, validation: Tensor, *, tolerance: Any = 0.0
) -> Selection:
    """Keep the strides that the coupled forecast needs.

    Coarse networks are dropped one after another, then fine ones, as long as the forecast does not
    get worse. A stride too large to be learned adds its error to all states that start from its own,
    and one too small is better replaced by interpolation. States of coarse strides are computed once
    for all sets that share them.

    Args:
        hierarchy: Steppers of all strides.
        validation: Trajectories, `(N, T, *D)`; the forecast starts from row 0 and is compared with
            the others.
        tolerance: A smaller set is taken while its error is at most `1 + tolerance` times the best
            error so far.

    Raises:
        ValueError: If the trajectories have no row after the first, hold NaN, or the tolerance is
            negative.

    Source: Liu, Kutz, Brunton 2020, section 3, "cross validation of the range of time scales".

    Examples:
        >>> class Exact:  # of dx/dt = 1, but for the stride 8
        ...     def __init__(self, step_size):
        ...         self.step_size = step_size
        ...
        ...     def __call__(self, x):
        ...         return x + self.step_size + (self.step_size == 8)
        >>> line = torch.arange(33.0).view(1, 33, 1)
        >>> chosen = select_strides(HierarchicalTimeStepper([Exact(s) for s in (1, 4, 8)]), line)
        >>> chosen.hierarchy.step_sizes
        [1]
    """
    if validation.ndim < 3 or validation.shape[1] < 2 or len(validation) == 0:
        raise ValueError(
            f"validation must be (N, T, *D) with two rows or more, got {tuple(validation.shape)}"
        )
    if not (isinstance(tolerance, float) and tolerance == math.inf):  # inf allows any error
        tolerance = check_number("tolerance", tolerance, minimum=0)
    check_finite("validation", validation)
    table: list[tuple[tuple[int, ...], float]] = []
    strides = hierarchy.step_sizes
    scores: list[float] = []
    best = float("inf")
    for first in range(len(strides)):
        tried = _scores(hierarchy.only(strides[first:]), validation)
        table.append((tuple(strides[first:]), tried[-1]))
        if first and not tried[-1] <= (1 + tolerance) * best:
            break
        kept, scores = strides[first:], tried
        best = min(best, tried[-1])
    count = len(kept)
    while count > 1:
        error = scores[count - 2]
        table.append((tuple(kept[: count - 1]), error))
        if not error <= (1 + tolerance) * best:
            break
        best = min(best, error)
        count -= 1
    return Selection(hierarchy.only(kept[:count]), table)


def _scores(hierarchy: HierarchicalTimeStepper, validation: Tensor) -> list[float]:
    """Return the mean squared errors with the coarsest stride, the two coarsest, ..., all."""
    steppers = hierarchy.coarse_first()
    x0, truth = validation[:, 0], validation[:, 1:]
    coupling = started(steppers, x0, truth.shape[1], None)
    errors = []
    for stepper in steppers:
        coupling.refine(stepper)
        forecast, _ = coupling.read(stepper)
        errors.append((forecast - truth).square().mean(dtype=torch.float64).item())
    return errors
