"""Fit the network that predicts the errors of strides, from the errors on trajectories."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_made, check_number
from neurenix_ms._core.dims import check_positive
from neurenix_ms.timestepping.adaptive import AdaptiveTimeStepper, StrideErrors
from neurenix_ms.timestepping.coupling import Stepper, advanced
from neurenix_ms.timestepping.forecasting import check_finite
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.windows import channel_units, per_channel

COMPARED = 16  # times within a stride, at most
SMALLEST_ERROR = 1e-12  # below it the logarithm of an error says nothing
LARGEST_LOGARITHM = 6.0  # of the error of a stepper that diverges
VALUES_PER_CHUNK = 2**22


@checked
def fit_adaptive(
    hierarchy: HierarchicalTimeStepper,
    trajectories: Tensor,
    network: Callable[[], nn.Module],
    *,
    tolerance: float,
    num_windows: int = 20_000,
    num_iterations: int = 3000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> AdaptiveTimeStepper:
    """Train a network that predicts the errors of trained steppers, and return them with it.

    Every stepper starts from the same rows of trajectories. One error of a stride is the difference of
    the predicted state and that of the trajectory, the other the largest difference of the trajectory
    and the straight line over the stride. Both are root mean squares over the state, in units of the
    standard deviation of every channel. They differ by orders of magnitude, so the network is trained on
    their logarithms.

    A tolerance bounds the error of one stride, not of a forecast. Choose both tolerances on validation
    trajectories: an `AdaptiveTimeStepper` with others takes the same networks.

    Args:
        hierarchy: Trained steppers, as `fit_hierarchy` returns them.
        trajectories: Rows at equal time steps, `(N, T, *D)`. If the steppers are less accurate on other
            trajectories than on those of their training, use others.
        network: Callable that returns a network from states `(B, *D)` to two numbers per stride, much
            smaller than those of the steppers, such as `lambda: MLP(2, 12, [32, 32])` for 6 strides.
        tolerance: Largest error of a stride, and of the interpolation over it.
        num_windows: Number of rows from which errors are measured, spread over the trajectories.
        num_iterations: Steps of Adam, with a learning rate that decays to 0.
        batch_size: Rows per step.
        learning_rate: Initial learning rate.
        seed: Seed of the order of the rows. `network` initializes the weights.
        progress: Show a progress bar.

    Shape:
        `trajectories`: `(N, T, *D)`

    Raises:
        ValueError: If the trajectories are not longer than the largest stride or hold NaN, the network
            does not return two numbers per stride, or an option is out of range.
        ImportError: If tqdm is missing.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> from neurenix_ms.timestepping import IntegratorStepper
        >>> steppers = [IntegratorStepper(torch.neg, 0.1, stride) for stride in (1, 8)]
        >>> decay = torch.exp(-0.1 * torch.arange(100)).view(1, 100, 1)
        >>> model = fit_adaptive(
        ...     HierarchicalTimeStepper(steppers),
        ...     decay,
        ...     lambda: MLP(1, 4, [8]),
        ...     tolerance=0.01,
        ...     num_iterations=500,
        ...     progress=False,
        ... )
        >>> _, computed = model.forecast(torch.ones(1, 1), 80, return_computed=True)
        >>> computed[0, :20].sum() > computed[0, -20:].sum()  # more states while it is fast
        tensor(True)
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("training needs tqdm: pip install 'neurenix_ms[ode]'") from error
    check_positive(num_windows=num_windows, num_iterations=num_iterations, batch_size=batch_size)
    check_number("learning_rate", learning_rate, above=0)
    steppers = hierarchy.coarse_first()[::-1]
    _check(trajectories, steppers[-1].step_size)
    mean, std = (value.float() for value in channel_units(trajectories))
    made = check_made("network", network).to(trajectories)
    errors = StrideErrors(made, mean.tolist(), std.tolist()).to(trajectories)
    states, measured = stride_errors(steppers, trajectories, std.to(trajectories), num_windows)
    if (shape := errors(states[:1]).shape) != (1, 2, len(steppers)):
        raise ValueError(
            f"network must return two numbers for each of {len(steppers)} strides, "
            f"got {shape.numel()} for one state"
        )
    optimizer = torch.optim.Adam(errors.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(num_iterations), desc="training the errors", disable=not progress):
        rows = torch.randint(len(states), (batch_size,), generator=generator).to(states.device)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(errors(states[rows]), measured[rows]).backward()
        optimizer.step()
        schedule.step()
    return AdaptiveTimeStepper(steppers, errors, tolerance)


@torch.no_grad()
def stride_errors(
    steppers: list[Stepper], trajectories: Tensor, std: Tensor, num_windows: int
) -> tuple[Tensor, Tensor]:
    """Return states spread over the trajectories, and the log10 of the error of every stride there."""
    num_samples, num_rows = trajectories.shape[:2]
    first_rows = num_rows - max(stepper.step_size for stepper in steppers)
    count = min(num_windows, num_samples * first_rows)
    # multiples of the golden ratio: evenly spread rows, not correlated with the trajectories
    i = torch.arange(count, dtype=torch.float64)
    sample = ((i + 0.5) / count * num_samples).long().to(trajectories.device)
    row = ((i * 0.6180339887498949) % 1 * first_rows).long().to(trajectories.device)
    unit = per_channel(std, trajectories.ndim - 1)
    columns = [
        torch.cat(list(_errors(stepper, trajectories, sample, row, unit)), dim=1)
        for stepper in steppers
    ]
    errors = torch.stack(columns, dim=2).clamp(min=SMALLEST_ERROR)  # (2, M, K)
    logarithms = errors.log10().nan_to_num(nan=torch.inf).clamp(max=LARGEST_LOGARITHM)
    return trajectories[sample, row], logarithms.transpose(0, 1)


def _errors(
    stepper: Stepper, trajectories: Tensor, sample: Tensor, row: Tensor, unit: Tensor
) -> Iterator[Tensor]:
    """Yield the largest errors within a stride from some rows, for chunks of them."""
    stride = stepper.step_size
    offsets = torch.linspace(0, stride, min(stride, COMPARED) + 1).round().long()[1:]
    offsets = offsets.to(trajectories.device)
    share = (offsets / stride).to(trajectories.dtype).view(-1, *(1,) * (trajectories.ndim - 2))
    values = trajectories[0, 0].numel() * len(offsets)
    for rows in torch.arange(len(row), device=row.device).split(max(1, VALUES_PER_CHUNK // values)):
        truth = trajectories[sample[rows, None], row[rows, None] + offsets]
        x = trajectories[sample[rows], row[rows]]
        end = _rms((advanced(stepper, x) - truth[:, -1]) / unit)
        line = torch.lerp(x[:, None], truth[:, -1:], share)
        within = _rms(((line - truth) / unit).flatten(0, 1)).view(len(x), -1).amax(dim=1)
        yield torch.stack([end, within])


def _rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(dim=1).sqrt()


def _check(trajectories: Tensor, longest: int) -> None:
    if trajectories.ndim < 3 or len(trajectories) == 0 or trajectories.shape[1] <= longest:
        raise ValueError(
            f"trajectories must be (N, T, *D) with more rows than the largest stride {longest}, "
            f"got shape {tuple(trajectories.shape)}"
        )
    check_finite("trajectories", trajectories)
