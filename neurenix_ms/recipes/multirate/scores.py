"""Errors and correlations of forecasts over time."""

from typing import Any

import torch
from torch import Tensor

from neurenix_ms.timestepping import MultirateStepper, TimeStepper
from neurenix_ms.timestepping.rollouts import rollout

Result = dict[str, Any]
THRESHOLD = 0.5


@torch.no_grad()
def measured(model: TimeStepper | MultirateStepper, rows: Tensor) -> Result:
    """Return errors and correlations at every step, as means over the windows.

    A stepper of a longer stride has the values at the end of each stride at all of its steps.

    Args:
        model: Trained model.
        rows: Windows of true states `(N, T, 1, S)`, of which the first row is the start.
    """
    model.eval()
    stride = model.step_size if isinstance(model, TimeStepper) else 1
    truth = rows[:, stride::stride].flatten(2)
    states = rollout(model, rows[:, 0], truth.shape[1]).flatten(2)
    states = states.nan_to_num(0.0, 0.0, 0.0)
    errors = (states - truth).square().mean(dim=(0, 2)).sqrt()
    correlations = torch.cosine_similarity(states, truth, dim=2).mean(dim=0)
    values = {"errors": errors, "correlations": correlations}
    return {name: rounded(one.repeat_interleave(stride)) for name, one in values.items()}


def horizon(correlations: list[float]) -> int:
    """Return the number of steps before the correlation is below 0.5 for the first time."""
    for step, value in enumerate(correlations):
        if value < THRESHOLD:
            return step
    return len(correlations)


def rounded(values: Tensor) -> list[float]:
    """Return numbers with four digits after the point."""
    return [round(value, 4) for value in values.tolist()]
