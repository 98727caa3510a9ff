"""Train a time-stepper on rollouts of several steps."""

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_number
from neurenix_ms._core.dims import check_positive
from neurenix_ms.timestepping.forecasting import check_finite, check_same_states
from neurenix_ms.timestepping.multirate import MultirateStepper
from neurenix_ms.timestepping.stepper import TimeStepper


@checked
def fit_rollouts(
    model: TimeStepper | MultirateStepper,
    trajectories: Tensor,
    *,
    validation: Tensor,
    horizon: int = 8,
    num_iterations: int = 5000,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    noise: float = 0.0,
    history: int = 0,
    warm_up: float = 0.3,
    check_every: int = 250,
    seed: int = 0,
    progress: bool = True,
) -> TimeStepper | MultirateStepper:
    """Train a stepper on rollouts from its own predictions, and return it with its best weights.

    A stepper that is trained on single steps is not trained on states that contain its own errors, but a
    forecast consists of such states. Here the stepper starts at a random row of a trajectory and makes
    `horizon` steps, each from its last prediction, and the mean squared error of all steps is minimized.
    Use it to train a `MultirateStepper`, and the `TimeStepper` that it is compared with in the same way;
    `fit_hierarchy` trains several strides.

    Args:
        model: Stepper to train, on the device and with the dtype of `trajectories`.
        trajectories: Rows at equal time steps, `(N, T, *D)`, standardized beforehand.
        validation: Other trajectories, by which the best weights are chosen.
        horizon: Steps of a rollout.
        num_iterations: Steps of Adam, with a learning rate that decays to 0.
        batch_size: Rollouts per step of Adam.
        learning_rate: Initial learning rate.
        noise: Standard deviation of the noise that is added to initial states.
        history: Largest number of true states from which the hidden states of a `MultirateStepper` are
            initialized before a rollout, without gradients. Numbers from 0 on are drawn, so that it can
            start without a history and continue for long.
        warm_up: Fraction of the training, from its start, with rollouts of at most two steps.
        check_every: Iterations between two validation checks.
        seed: Seed of the windows and of the noise.
        progress: Show a progress bar.

    Shape:
        `trajectories`, `validation`: `(N, T, *D)`

    Raises:
        ValueError: If a number is out of range, or trajectories are shorter than a rollout, not finite,
            or their states differ in shape.
        ImportError: If tqdm is missing.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> from neurenix_ms.timestepping import TimeStepper
        >>> waves = torch.sin(0.1 * torch.arange(60)).expand(4, -1).unsqueeze(2)
        >>> model = fit_rollouts(
        ...     TimeStepper(MLP(1, 1, [8]), 1),
        ...     waves,
        ...     validation=waves,
        ...     num_iterations=2,
        ...     progress=False,
        ... )
        >>> model.forecast(waves[:, 0], 3).shape
        torch.Size([4, 3, 1])
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("training needs tqdm: pip install 'neurenix_ms[ode]'") from error
    check_positive(
        horizon=horizon,
        num_iterations=num_iterations,
        batch_size=batch_size,
        check_every=check_every,
    )
    check_number("learning_rate", learning_rate, above=0)
    check_number("noise", noise, minimum=0)
    check_number("warm_up", warm_up, minimum=0, maximum=1)
    stride = model.step_size if isinstance(model, TimeStepper) else 1
    check_integer("history", history, 0)
    length = horizon * stride + history
    for name, data in (("trajectories", trajectories), ("validation", validation)):
        if data.ndim < 3 or len(data) == 0 or data.shape[1] <= length:
            raise ValueError(
                f"{name} must be (N, T, *D) with more than {length} rows for a history of "
                f"{history} and {horizon} steps of {stride}, got shape {tuple(data.shape)}"
            )
        check_finite(name, data)
    check_same_states(validation, trajectories)
    model.to(trajectories)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations)
    generator = torch.Generator().manual_seed(seed)
    offsets = stride * torch.arange(horizon + 1)
    held_out = _held_out(validation.to(trajectories), horizon * stride, stride)
    best, least = _snapshot(model), torch.inf
    for i in tqdm(range(1, num_iterations + 1), desc="training", disable=not progress):
        num_steps = horizon if i > warm_up * num_iterations else min(horizon, 2)
        which = torch.randint(len(trajectories), (batch_size, 1), generator=generator)
        first = torch.randint(trajectories.shape[1] - length, (batch_size, 1), generator=generator)
        num_earlier = int(torch.randint(history + 1, (), generator=generator))
        earlier = trajectories[which, first + torch.arange(num_earlier)]
        rows = trajectories[which, first + num_earlier + offsets[: num_steps + 1]]
        x0 = rows[:, 0]
        if noise:
            x0 = x0 + noise * torch.randn(x0.shape, generator=generator).to(x0)
        optimizer.zero_grad()
        (rollout(model, x0, num_steps, earlier) - rows[:, 1:]).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if i % check_every == 0 or i == num_iterations:
            with torch.no_grad():
                errors = rollout(model, held_out[:, 0], horizon) - held_out[:, 1:]
            mean = errors.square().mean().item()
            if mean < least:
                best, least = _snapshot(model), mean
    model.load_state_dict(best)
    return model


def rollout(
    model: TimeStepper | MultirateStepper,
    x0: Tensor,
    num_steps: int,
    history: Tensor | None = None,
) -> Tensor:
    """Return the states after so many strides of a stepper, `(B, num_steps, *D)`.

    Args:
        model: The stepper.
        x0: States at time 0.
        num_steps: Number of strides.
        history: States before `x0`, from which hidden states are initialized without gradients.
    """
    if isinstance(model, MultirateStepper):
        if history is None or not history.shape[1]:
            return model.forecast(x0, num_steps)
        with torch.no_grad():
            _, memory = model.follow(history)
        return model.continued(x0, memory, num_steps)
    states = []
    for _ in range(num_steps):
        x0 = model(x0)
        states.append(x0)
    return torch.stack(states, dim=1)


def _held_out(validation: Tensor, length: int, stride: int, most: int = 256) -> Tensor:
    """Return windows spread evenly over the trajectories."""
    windows = validation.unfold(1, length + 1, 1).movedim(-1, 2)[:, :, ::stride]
    every = max(1, windows.shape[0] * windows.shape[1] // most)
    return windows[:, ::every].flatten(0, 1)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
