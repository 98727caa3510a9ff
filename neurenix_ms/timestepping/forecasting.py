"""Forecast with coupled steppers, with checks of the initial states and the result."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from neurenix_ms._core.dims import check_positive
from neurenix_ms._core.hooks import holds_values
from neurenix_ms.timestepping.coupling import Coupling, Stepper, fitting_chunk

QueryTimes = Tensor | Sequence[float]


def forecast(
    steppers: Sequence[Stepper],
    x0: Tensor,
    num_steps: int,
    *,
    times: QueryTimes | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the coupled forecast of several steppers, and the rows that were computed.

    Args:
        steppers: Coarsest first, all strides different.
        x0: States at time 0, `(B, *D)`.
        num_steps: Number of steps.
        times: Times of the returned states; every step by default.
        chunk_size: Number of states per call of a stepper.
    """
    coupling = started(steppers, x0, num_steps, chunk_size)
    queries = None if times is None else queries_of(times, num_steps, x0.device)
    for stepper in steppers:
        coupling.refine(stepper)
    result, computed = coupling.read(steppers[-1], queries)
    warn_of_divergence(result, queries)
    if computed is None:
        return result, torch.arange(num_steps, device=x0.device)
    return result, computed.nonzero()[:, 0]


def started(
    steppers: Sequence[Stepper], x0: Tensor, num_steps: int, chunk_size: int | None
) -> Coupling:
    """Return a coupling with the initial states alone, after checking them."""
    check_positive(num_steps=num_steps)
    if chunk_size is not None:
        check_positive(chunk_size=chunk_size)
    check_states(x0)
    return Coupling(x0, num_steps, chunk_size or fitting_chunk(steppers, x0))


def check_states(x0: Tensor) -> None:
    """Raise unless `x0` is a batch of finite states `(B, *D)`."""
    if x0.ndim < 2:
        raise ValueError(f"x0 must be a batch of states (B, *D), got shape {tuple(x0.shape)}")
    check_finite("x0", x0)


def check_finite(name: str, x: Tensor) -> None:
    """Raise with the number of the first sample that holds NaN or inf, if any does."""
    bad = ~x.flatten(1).isfinite().all(dim=1)
    if holds_values(x) and bad.any():
        raise ValueError(
            f"{name} must be finite, got NaN or inf in sample {int(bad.int().argmax())}"
        )


def check_same_states(validation: Tensor, trajectories: Tensor) -> None:
    """Raise unless the states of both have one shape."""
    if validation.shape[2:] != trajectories.shape[2:]:
        raise ValueError(
            f"validation must have states of shape {tuple(trajectories.shape[2:])} "
            f"like the trajectories, got {tuple(validation.shape[2:])}"
        )


def warn_of_divergence(states: Tensor, times: Tensor | None) -> None:
    """Warn of the first step of `(B, T, *D)` that is not finite, if there is one."""
    finite = states.detach().sum().isfinite()
    if not holds_values(states) or finite:  # a cheap test that nearly every forecast passes
        return
    bad = ~states.detach().isfinite().flatten(2).all(dim=2).all(dim=0)
    if bad.any():
        row = int(bad.int().argmax())
        when = f"step {row + 1}" if times is None else f"time {times[row].item():g}"
        warnings.warn(f"the forecast is not finite from {when} on", RuntimeWarning, stacklevel=4)


def queries_of(times: QueryTimes, num_steps: int, device: torch.device) -> Tensor:
    """Return the times of a forecast as a tensor, after checking them."""
    if isinstance(times, Tensor) and (times.is_meta or times.is_complex()):
        raise ValueError(f"times must be real numbers, got {times.dtype} on {times.device}")
    queries = torch.as_tensor(times, dtype=torch.float64, device=device)
    if queries.ndim != 1 or len(queries) == 0:
        raise ValueError(f"times must be a sequence of numbers, got shape {tuple(queries.shape)}")
    steps = queries.diff()
    if not (steps > 0).all():
        i = int((~(steps > 0)).int().argmax())
        raise ValueError(
            f"times must increase, got {queries[i].item():g} before {queries[i + 1].item():g}"
        )
    if not (queries[0] >= 0 and queries[-1] <= num_steps):
        raise ValueError(
            f"times must lie between 0 and num_steps = {num_steps}, "
            f"got {queries[0].item():g} to {queries[-1].item():g}"
        )
    return queries
