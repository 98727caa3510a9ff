"""Train a hierarchy of time-steppers on trajectories, all strides at once."""

import os
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers, check_made, check_number
from neurenix_ms._core.dims import check_positive, choose
from neurenix_ms.timestepping.banks import can_be_stacked, make_bank, stacking_is_faster
from neurenix_ms.timestepping.forecasting import check_finite, check_same_states
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.run import TrainingRun, WindowLoss, found
from neurenix_ms.timestepping.shortcuts import BankWithShortcuts, fitted_shortcuts, prepared
from neurenix_ms.timestepping.stepper import TimeStepper
from neurenix_ms.timestepping.windows import (
    StandardizedNetwork,
    Windows,
    WindowSource,
    channel_units,
)

Schedule = Literal["cosine", "plateau"] | None


@checked
def fit_hierarchy(
    trajectories: Tensor,
    dt: float,
    step_sizes: Sequence[int],
    network: Callable[[], nn.Module],
    *,
    validation: Tensor,
    horizon: int = 5,
    windows: Windows = "all",
    num_iterations: int = 10_000,
    batch_size: int = 320,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    check_every: int = 200,
    patience: int | None = None,
    stacked: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> HierarchicalTimeStepper:
    """Train one network per stride on trajectories, and couple them.

    A network starts at a row of a trajectory and makes `horizon` strides, each from its own last
    prediction; every one is compared with the trajectory. All strides train at the same time, with
    their own windows, errors and best weights, and do not influence one another. States and changes
    are scaled to unit variance (`StandardizedNetwork`), so one learning rate suits them all.

    Args:
        trajectories: Rows at equal time steps, `(N, T, *D)`; the networks train on their device and
            dtype.
        dt: Time between two rows, the unit of the strides.
        step_sizes: The strides, all different.
        network: Callable that returns a network from states to changes; called once per stride. The
            shortcut of an `MLP(..., shortcut=True)` is fitted by least squares first and then kept. The
            other layers start from an output of 0 and are trained on the rest of the changes, scaled to
            unit variance, so that a forecast of nearly linear dynamics is accurate to many digits.
        validation: Other trajectories, by which the best weights are chosen.
        horizon: Strides per window; fewer if the trajectories are too short for a large stride.
        windows: "all" draws windows anywhere along the trajectories, "start" only at their first row,
            as the paper does, so that networks learn from states shortly after the start only.
        num_iterations: Steps of Adam.
        batch_size: Windows per stride and step.
        learning_rate: Initial learning rate.
        schedule: "cosine" lets the learning rate decay to 0, "plateau" halves it when the validation
            error does not improve for five checks, None keeps it constant.
        check_every: Iterations between two validation checks, and between two checkpoints.
        patience: Stop after this number of checks without improvement of any stride; None for never.
        stacked: Evaluate networks of one shape in one batched product; None measures whether that is
            faster here.
        checkpoint: File to resume an interrupted run from, and to load a finished one from.
        seed: Seed of the windows. `network` initializes the weights.
        progress: Show a progress bar.

    Shape:
        `trajectories`, `validation`: `(N, T, *D)`

    Raises:
        ValueError: If strides are equal or below 1; if trajectories are shorter than the largest
            stride, differ in the shape of states, or hold NaN; if an option is unknown or a count
            below 1; if some networks have a shortcut and others not, or states are fields then; or
            if the checkpoint was made with other settings.
        ImportError: If tqdm is missing.

    Source: Liu, Kutz, Brunton 2020, section 3; the published code trains on the first window of every
    trajectory only, at one learning rate.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> import torch
        >>> t = torch.arange(200) * 0.05
        >>> waves = torch.stack([(t + p).sin() for p in range(6)]), torch.stack(
        ...     [(t + p).cos() for p in range(6)]
        ... )
        >>> data = torch.stack(waves, dim=-1)
        >>> model = fit_hierarchy(
        ...     data[:4],
        ...     0.05,
        ...     [1, 8],
        ...     lambda: MLP(2, 2, [16]),
        ...     validation=data[4:],
        ...     num_iterations=100,
        ...     progress=False,
        ... )
        >>> model.step_sizes
        [8, 1]
    """
    step_sizes = list(step_sizes)
    _check(trajectories, dt, step_sizes, validation)
    choose(dict.fromkeys(("all", "start")), windows, "windows")
    choose(dict.fromkeys(("cosine", "plateau", None)), schedule, "schedule")
    check_positive(
        horizon=horizon,
        num_iterations=num_iterations,
        batch_size=batch_size,
        check_every=check_every,
    )
    check_number("learning_rate", learning_rate, above=0)
    networks = [check_made("network", network).to(trajectories) for _ in step_sizes]
    source = WindowSource(trajectories, step_sizes, horizon, windows)
    held_out = WindowSource(validation.to(trajectories), step_sizes, horizon, windows)
    # rounded to float32, so that a saved network has exactly the scales it was trained with
    units = *channel_units(trajectories), source.change_scale()
    mean, std, scale = (value.float().to(trajectories) for value in units)
    shortcuts = None
    if prepared(networks, trajectories):
        shortcuts = fitted_shortcuts(trajectories, step_sizes, windows, mean, std, scale)
    loss = WindowLoss(mean, std, scale, source.weights, shortcuts)
    settings = {
        "dt": dt,
        "step_sizes": step_sizes,
        "horizon": horizon,
        "windows": windows,
        "num_iterations": num_iterations,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "check_every": check_every,
        "seed": seed,
        "state": list(trajectories.shape[2:]),
        "parameters": [sum(p.numel() for p in one.parameters()) for one in networks],
    }
    earlier = found(checkpoint, settings)
    if earlier is not None:
        stacked = earlier["stacked"]
    elif stacked is None:
        trial = source.spread(batch_size)
        stacked = stacking_is_faster(networks, lambda bank: loss(bank, trial).sum().backward())
    elif stacked and not can_be_stacked(networks):
        raise ValueError("stacked=True needs several MLPs of the same widths, got others")
    bank = make_bank(networks, stacked)
    run = TrainingRun(
        bank if shortcuts is None else BankWithShortcuts(bank, shortcuts), settings, stacked
    )
    if earlier is not None:
        run.load(earlier)
    run.train(source, held_out, loss, patience, checkpoint, progress)
    return HierarchicalTimeStepper(
        [
            TimeStepper(
                StandardizedNetwork(one, mean.tolist(), std.tolist(), gain).to(trajectories),
                stride,
            )
            for one, stride, gain in zip(
                run.bank.unpacked(), step_sizes, scale.tolist(), strict=True
            )
        ]
    )


def _check(trajectories: Tensor, dt: float, step_sizes: Sequence[int], validation: Tensor) -> None:
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    check_integers("step_sizes", step_sizes, 1, min_length=1)
    if len(set(step_sizes)) < len(step_sizes):
        raise ValueError(f"step_sizes must be different, got {list(step_sizes)}")
    for name, data in (("trajectories", trajectories), ("validation", validation)):
        if data.ndim < 3 or len(data) == 0:
            raise ValueError(f"{name} must be (N, T, *D), got shape {tuple(data.shape)}")
        if data.shape[1] <= max(step_sizes):
            raise ValueError(
                f"{name} must have more rows than the largest step size {max(step_sizes)}, "
                f"got {data.shape[1]}"
            )
        check_finite(name, data)
    check_same_states(validation, trajectories)
