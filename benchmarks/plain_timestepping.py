"""Plain implementation of the published forecast and training."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import interp1d
from torch import Tensor, nn

from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import MultirateStepper


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


class PlainMultirate:
    """Forecast one channel on a ring by the latents of a Fourier transform at every step.

    Args:
        model: A `MultirateStepper` with the same weights.
    """

    def __init__(self, model: MultirateStepper) -> None:
        self.model = model
        modes = model.latents.modes
        self.groups = [
            range(a, b) for a, b in zip([0, *modes[:0:-1]], modes[::-1], strict=True)
        ]  # coarsest first

    def encode(self, x: Tensor) -> list[Tensor]:
        u = torch.fft.rfft(x[:, 0]) / x.shape[-1]
        parts, latents = [], []
        for group in self.groups:
            parts += [u.real[:, k] * (2**0.5 if k else 1.0) for k in group]
            parts += [-u.imag[:, k] * 2**0.5 for k in group if k]
            latents.append(torch.stack(parts, dim=1))
        return latents[::-1]

    def decode(self, z: Tensor, size: int) -> Tensor:
        u = torch.zeros(len(z), size // 2 + 1, dtype=torch.complex64)
        i = 0
        for group in self.groups:
            if i == z.shape[1]:
                break
            for k in group:
                u[:, k] += z[:, i] / (2**0.5 if k else 1.0)
                i += 1
            for k in group:
                if k:
                    u[:, k] -= 1j * z[:, i] / 2**0.5
                    i += 1
        return torch.fft.irfft(u * size, size)[:, None]

    @torch.no_grad()
    def forecast(self, x: Tensor, num_steps: int) -> Tensor:
        model, levels, size = self.model, self.model.levels, x.shape[-1]
        scale = model.change_scale
        hidden = [torch.zeros(len(x), model.hidden_size) for _ in levels]
        paths, anchors = [None] * len(levels), [None] * len(levels)
        states = []
        for step in range(num_steps):
            z = self.encode(x)
            coarser = []
            for i in reversed(range(len(levels))):
                level, since = levels[i], step % levels[i].period
                if since == 0:
                    told = torch.cat([z[i], *coarser], dim=1)
                    hidden[i] = level.unit(nn.functional.silu(level.encoder(told)), hidden[i])
                    paths[i] = level.readout(hidden[i]).chunk(level.degree, dim=1)
                    anchors[i] = z[i]
                if i:
                    finer = levels[i - 1].period
                    first, last = (self.walked(paths[i], level, j) for j in (since, since + finer))
                    coarser = [(last - first) / finer]
            priors = [
                self.walked(path, level, step % level.period + 1) + (anchor - one) / scale
                for path, level, anchor, one in zip(paths, levels, anchors, z, strict=True)
            ]
            change = model.predictor(torch.cat([x, *(self.decode(p, size) for p in priors)], dim=1))
            for i, posterior in enumerate(self.encode(change)):
                gate = levels[i].gate(torch.cat([priors[i], posterior, hidden[i]], dim=1)).sigmoid()
                change = change + self.decode(gate * (priors[i] - posterior), size)
                error = (1 - gate) * (posterior - priors[i])
                hidden[i] = hidden[i] + levels[i].correction(error)
            x = x + scale * change
            states.append(x)
        return torch.stack(states, dim=1)

    @staticmethod
    def walked(path: Sequence[Tensor], level: nn.Module, num_steps: int) -> Tensor:
        return sum(c * num_steps * (num_steps / level.period) ** k for k, c in enumerate(path))
