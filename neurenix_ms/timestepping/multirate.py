"""Time-steppers whose latents of several scales advance at their own rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers, check_number
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.timestepping.latents import FourierLatents, LinearLatents


@dataclass(frozen=True)
class LevelMemory:
    """What a level keeps from one step to the next.

    Args:
        hidden: Hidden state of its recurrent unit, `(B, H)`.
        path: Coefficients of the predicted change since the last update as a polynomial of the time,
            `(B, degree, n)`.
        anchor: Latents at the last update, `(B, n)`.
    """

    hidden: Tensor
    path: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class Memory:
    """Memory of all levels, finest first, and the number of steps so far."""

    step: int
    levels: tuple[LevelMemory, ...]


class RateLevel(nn.Module):
    """One level: a gated recurrent unit that predicts latents, and their fusion with computed ones.

    Args:
        num_features: Number of latents.
        num_coarser: Number of latents of the next coarser level; 0 for the coarsest.
        hidden_size: Size of the hidden state.
        period: Steps between two updates.
        degree: Degree of the polynomial in time.
        gate_bias: Bias of the gates.

    Shape:
        Latents `(B, num_features)`, and those of the next coarser level `(B, num_coarser)`
    """

    def __init__(
        self,
        num_features: int,
        num_coarser: int,
        hidden_size: int,
        period: int,
        degree: int,
        gate_bias: float,
    ) -> None:
        super().__init__()
        self.period = period
        self.degree = degree if period > 1 else 1
        self.encoder = nn.Linear(num_features + num_coarser, hidden_size)
        self.unit = nn.GRUCell(hidden_size, hidden_size)
        self.readout = nn.Linear(hidden_size, self.degree * num_features)
        self.gate = nn.Linear(2 * num_features + hidden_size, num_features)
        self.correction = nn.Linear(num_features, hidden_size, bias=False)
        # a new level predicts persistence and corrects nothing
        for layer in (self.readout, self.correction, self.gate):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.readout.bias)
        nn.init.constant_(self.gate.bias, gate_bias)

    def start(self, z: Tensor) -> LevelMemory:
        """Return the memory before the first step."""
        hidden = z.new_zeros(len(z), self.unit.hidden_size)
        return LevelMemory(hidden, z.new_zeros(len(z), self.degree, z.shape[1]), z)

    def update(self, z: Tensor, coarser: Sequence[Tensor], memory: LevelMemory) -> LevelMemory:
        """Update the hidden state and predict the latents up to the next update."""
        x = nn.functional.silu(self.encoder(torch.cat([z, *coarser], dim=1)))
        hidden = self.unit(x, memory.hidden)
        path = self.readout(hidden).unflatten(1, (self.degree, -1))
        return LevelMemory(hidden, path, z)

    def change(self, memory: LevelMemory, num_steps: int) -> Tensor:
        """Return the predicted change of the latents so many steps after the last update."""
        total = memory.path[:, 0] * num_steps
        for power in range(1, self.degree):
            total = total + memory.path[:, power] * (num_steps * (num_steps / self.period) ** power)
        return total

    def fused(self, prior: Tensor, posterior: Tensor, memory: LevelMemory) -> tuple[Tensor, Tensor]:
        """Return the change from the posterior to the fused latents, and the corrected hidden state."""
        gate = torch.sigmoid(self.gate(torch.cat([prior, posterior, memory.hidden], dim=1)))
        change = gate * (prior - posterior)
        hidden = memory.hidden + self.correction(posterior + change - prior)
        return change, hidden


class MultirateStepper(Configured, nn.Module):
    """Advance a state by one step, with recurrent predictions of its latents at several rates.

    One network that is called at every step accumulates its error. Here every scale has a recurrent
    unit that is updated at its own period, rarely for the coarse scales, and predicts the latents of
    that scale until its next update. A step has four parts:

    1. From the coarsest level to the finest, the levels whose period divides the number of the step are
       updated from the latents of the state and the prediction of the next coarser level (prior).
    2. The predictor computes the next state from the state and the priors of all levels. It is implicit:
       the priors are predictions for the time that it computes.
    3. In every level a gate fuses the prior with the latents of this state (posterior), and the state is
       corrected accordingly.
    4. The hidden states are corrected by the difference of the fused latents and the priors.

    Train it with `fit_rollouts`, whose loss has no term for the priors. Gates that start nearly closed
    then leave the recurrent units untrained. Compare it with a `TimeStepper` of as many parameters on
    your data: the tutorial did not reproduce the publication's advantage over such a network.

    Args:
        predictor: Network from a state and the predicted changes of all levels, `1 + L` times the
            channels of the state, to the change of the state.
        latents: `FourierLatents` for fields, `LinearLatents` for vectors.
        periods: Steps between two updates of every level, finest level first. Each is a multiple of the
            one before it.
        hidden_size: Size of the hidden states.
        degree: Degree of the polynomial by which a level with a period above 1 describes the latents
            between two updates.
        change_scale: Typical change of the state in a step. All networks predict changes in this unit.
        gate_bias: Initial bias of the gates; below 0 they prefer the posterior.

    Shape:
        `(B, T, *D)` -> the same: for every state, the next one

    Raises:
        ValueError: If there is not one period per level, a period is no multiple of the one before, a
            number is out of range, or the states have another shape.

    Source: Dhingra and San 2026, "Stabilizing Autoregressive Forecasts in Chaotic Systems via Multi-rate
    Latent Recurrence" (MSR-HINE). Deviations: between its updates a level follows a polynomial in time,
    and the predictor gets changes in place of latents.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> from neurenix_ms.timestepping import LinearLatents
        >>> latents = LinearLatents(3, [3, 2])
        >>> model = MultirateStepper(MLP(9, 3, [32]), latents, periods=[1, 4], hidden_size=8)
        >>> model.forecast(torch.zeros(2, 3), 10).shape
        torch.Size([2, 10, 3])
    """

    @checked
    def __init__(
        self,
        predictor: nn.Module,
        latents: FourierLatents | LinearLatents,
        periods: Sequence[int],
        *,
        hidden_size: int = 64,
        degree: int = 2,
        change_scale: float = 1.0,
        gate_bias: float = -3.0,
    ) -> None:
        super().__init__()
        check_positive(hidden_size=hidden_size, degree=degree)
        check_number("change_scale", change_scale, above=0)
        sizes = latents.num_features
        self.periods = check_integers("periods", periods, 1, min_length=1)
        if len(self.periods) != len(sizes):
            raise ValueError(
                f"periods must have one entry for each of the {len(sizes)} levels, got {self.periods}"
            )
        if any(b % a for a, b in pairwise(self.periods)):
            raise ValueError(
                f"every period must be a multiple of the one before it, got {self.periods}"
            )
        self.predictor = predictor
        self.latents = latents
        self.levels = nn.ModuleList(
            RateLevel(size, coarser, hidden_size, period, degree, gate_bias)
            for size, coarser, period in zip(sizes, [*sizes[1:], 0], self.periods, strict=True)
        )

    def _levels(self) -> list[RateLevel]:
        return [level for level in self.levels if isinstance(level, RateLevel)]

    def start(self, x: Tensor) -> Memory:
        """Return the memory before the first step from states `(B, *D)`."""
        z = self.latents.encode(x)
        levels = [level.start(one) for level, one in zip(self._levels(), z, strict=True)]
        return Memory(0, tuple(levels))

    def step(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return the states one step after `x`, and the memory then."""
        z = self.latents.encode(x)
        levels = self._updated(z, memory)
        priors = self._priors(z, levels, memory.step)
        change = self._predicted(x, priors)
        posteriors = self.latents.encode(change)
        corrected = []
        for i, level in enumerate(self._levels()):
            fused, hidden = level.fused(priors[i], posteriors[i], levels[i])
            change = change + self.latents.decode(fused, i)
            corrected.append(replace(levels[i], hidden=hidden))
        return x + self.change_scale * change, Memory(memory.step + 1, tuple(corrected))

    def _updated(self, z: Sequence[Tensor], memory: Memory) -> list[LevelMemory]:
        every, levels = self._levels(), list(memory.levels)
        coarser: list[Tensor] = []
        for i in reversed(range(len(levels))):
            level = every[i]
            if memory.step % level.period == 0:
                levels[i] = level.update(z[i], coarser, levels[i])
            if i:
                # what this level predicts until the next update of the finer one
                finer, since = self.periods[i - 1], memory.step % level.period
                ahead = level.change(levels[i], since + finer) - level.change(levels[i], since)
                coarser = [ahead / finer]
        return levels

    def _priors(
        self, z: Sequence[Tensor], levels: Sequence[LevelMemory], step: int
    ) -> list[Tensor]:
        """Return the changes of the latents up to the next step, in units of `change_scale`."""
        priors = []
        for one, level, memory in zip(z, self._levels(), levels, strict=True):
            change = level.change(memory, step % level.period + 1)
            if level.period > 1:
                change = change + (memory.anchor - one) / self.change_scale
            priors.append(change)
        return priors

    def _predicted(self, x: Tensor, priors: Sequence[Tensor]) -> Tensor:
        decoded = [self.latents.decode(prior, i) for i, prior in enumerate(priors)]
        change: Tensor = call_intact(self.predictor, torch.cat([x, *decoded], dim=1))
        if change.shape != x.shape:
            raise ValueError(
                f"the predictor must return a change of the state's shape {tuple(x.shape)}, "
                f"got {tuple(change.shape)}"
            )
        return change

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.follow(x)
        return states

    def follow(self, x: Tensor) -> tuple[Tensor, Memory]:
        """Return the predictions after every state of sequences `(B, T, *D)`, and the final memory."""
        shape = self.latents.state_shape
        if x.ndim != 2 + len(shape) or x.shape[2:] != shape or x.shape[1] == 0:
            raise ValueError(
                f"a sequence must be (B, T, {', '.join(map(str, shape))}), got shape {tuple(x.shape)}"
            )
        memory = self.start(x[:, 0])
        steps = []
        for state in x.unbind(1):
            y, memory = self.step(state, memory)
            steps.append(y)
        return torch.stack(steps, dim=1), memory

    @checked
    def forecast(self, x0: Tensor, num_steps: int, *, history: Tensor | None = None) -> Tensor:
        """Return the states 1, 2, ... steps after `x0`.

        Args:
            x0: States at time 0, `(B, *D)`.
            num_steps: Number of steps.
            history: States before `x0`, `(B, T, *D)`, from which the hidden states are initialized.
        """
        check_positive(num_steps=num_steps)
        memory = self.start(x0) if history is None else self.follow(history)[1]
        return self.continued(x0, memory, num_steps)

    def continued(self, x: Tensor, memory: Memory, num_steps: int) -> Tensor:
        """Return the states 1, 2, ... steps after `x`, whose levels have this memory."""
        states = []
        for _ in range(num_steps):
            x, memory = self.step(x, memory)
            states.append(x)
        return torch.stack(states, dim=1)
