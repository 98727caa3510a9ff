"""Plain implementation of the published forecast and training."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import interp1d
from torch import Tensor, nn

from neurenix_ms.layers.mlp import MLP


def plain_network(mlp: MLP) -> nn.Sequential:
    """Return the same layers with activations between them."""
    first, *others = mlp.layers
    return nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer)))


class Residual(nn.Module):
    """Add the output of a plain network to the state."""

    def __init__(self, mlp: MLP, step_size: int) -> None:
        super().__init__()
        self.increment = plain_network(mlp)
        self.step_size = step_size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.increment(x)


@torch.no_grad()
def forecast(steppers: Sequence[nn.Module], x0: Tensor, num_steps: int) -> Tensor:
    """Forecast long strides first, every level in one batch, with a Python list of all known rows.

    Args:
        steppers: Any order.
        x0: `(B, D)`.
        num_steps: Number of rows of the result, `(B, num_steps, D)`.
    """
    steppers = sorted(steppers, key=lambda stepper: -stepper.step_size)
    batch, dims = x0.shape
    states = torch.zeros(batch, num_steps + 2 * steppers[0].step_size, dims)
    states[:, 0] = x0
    rows = [0]
    reach = num_steps
    for stepper in steppers:
        stride = stepper.step_size
        columns = [rows]
        x = states[:, rows].reshape(-1, dims)
        for i in range(1, reach // stride + 1):
            x = stepper(x)
            shifted = [row + i * stride for row in rows]
            states[:, shifted] = x.reshape(batch, -1, dims)
            columns.append(shifted)
        rows = [row for group in zip(*columns, strict=True) for row in group]
        reach = stride - 1
    while rows[-1] < num_steps:
        x = steppers[-1](states[:, rows[-1]])
        rows.append(rows[-1] + steppers[-1].step_size)
        states[:, rows[-1]] = x
    known = interp1d(rows, states[:, rows].numpy(), axis=1)
    return torch.from_numpy(known(np.arange(1, num_steps + 1))).float()


class PlainTraining:
    """Train one network after the other, each with its own Adam optimizer.

    Args:
        networks: One per stride.
        horizon: Number of applications per window.
    """

    def __init__(self, networks: Sequence[nn.Module], horizon: int) -> None:
        self.networks = networks
        self.horizon = horizon
        self.optimizers = [torch.optim.Adam(n.parameters(), lr=1e-3) for n in networks]

    def step(self, windows: Tensor) -> None:
        """Train every network for one step on its windows `(K, B, horizon + 1, D)`."""
        for network, optimizer, own in zip(self.networks, self.optimizers, windows, strict=True):
            x = own[:, 0]
            loss = x.new_zeros(())
            for i in range(1, self.horizon + 1):
                x = x + network(x)
                loss = loss + (x - own[:, i]).square().mean()
            optimizer.zero_grad()
            (loss / self.horizon).backward()
            optimizer.step()
