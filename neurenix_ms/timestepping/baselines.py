"""Recurrent networks as baselines for time-steppers: LSTM, clockwork RNN and echo state network."""

from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive
from neurenix_ms.timestepping.sequences import SequenceModel


class LSTMForecaster(SequenceModel):
    """Long short-term memory with a linear readout.

    It is the first baseline to compare a stepper with. It needs a history to initialize its hidden
    state, and one call per step, so long forecasts take many.

    Args:
        num_features: Number of features of a state.
        hidden_size: Size of the hidden state.

    Shape:
        `(B, T, D)` -> the same

    Source: Hochreiter and Schmidhuber 1997, "Long short-term memory".

    Examples:
        >>> LSTMForecaster(3, 16).forecast(torch.zeros(2, 5, 3), 10).shape
        torch.Size([2, 10, 3])
    """

    @checked
    def __init__(self, num_features: int, hidden_size: int = 128) -> None:
        super().__init__(num_features, hidden_size)
        self.lstm = nn.LSTM(num_features, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, num_features)

    def start(self, x: Tensor) -> Any:
        return None

    def remember(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        hidden, memory = self.lstm(x[:, None], memory)
        return hidden[:, 0], memory

    def follow(self, x: Tensor) -> tuple[Tensor, Any]:
        self.check_sequence(x)
        return self.lstm(x)


class ClockworkRNN(SequenceModel):
    """Recurrent network of groups of units that are updated at periods 1, 4, 16, ...

    A group is updated when its period divides the number of the step, from itself and the slower
    groups; in between it keeps its values.

    Args:
        num_features: Number of features of a state.
        hidden_size: Size of the hidden state, all groups together.
        num_groups: Number of groups; it divides `hidden_size`.
        base: Ratio of two successive periods.

    Shape:
        `(B, T, D)` -> the same

    Raises:
        ValueError: If a count is below 1, or `hidden_size` is not a multiple of `num_groups`.

    Source: Koutnik et al. 2014, "A clockwork RNN", section 3.

    Examples:
        >>> ClockworkRNN(3, 16).forecast(torch.zeros(2, 5, 3), 10).shape
        torch.Size([2, 10, 3])
    """

    slower: Tensor

    @checked
    def __init__(
        self, num_features: int, hidden_size: int = 128, num_groups: int = 4, base: int = 4
    ) -> None:
        super().__init__(num_features, hidden_size)
        check_positive(num_groups=num_groups, base=base)
        if hidden_size % num_groups:
            raise ValueError(
                f"hidden_size must be a multiple of num_groups = {num_groups}, got {hidden_size}"
            )
        self.num_groups = num_groups
        self.base = base
        self.input = nn.Linear(num_features, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.readout = nn.Linear(hidden_size, num_features)
        group = torch.arange(hidden_size) // (hidden_size // num_groups)
        self.register_buffer("slower", (group[:, None] <= group).float(), persistent=False)

    def start(self, x: Tensor) -> Any:
        return x.new_zeros(len(x), self.hidden_size), 0

    def remember(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        hidden, step = memory
        # the first group is updated at every step, so at least its units change
        num_updated = sum(step % self.base**i == 0 for i in range(self.num_groups))
        count = num_updated * (self.hidden_size // self.num_groups)
        weight = (self.recurrent.weight * self.slower)[:count]
        drive = nn.functional.linear(x, self.input.weight[:count], self.input.bias[:count])
        moved = torch.tanh(drive + hidden @ weight.T)
        hidden = torch.cat([moved, hidden[:, count:]], dim=1)
        return hidden, (hidden, step + 1)


class EchoStateNetwork(SequenceModel):
    """Large recurrent network with fixed random weights and a linear readout fitted in one solve.

    It is fitted in a second where the others take a minute, so try it first. In the tutorial's
    comparison it is the best of all on a periodic wake, but on a chaotic field only for the next few
    rows, after which it leaves the attractor.

    Args:
        num_features: Number of features of a state.
        hidden_size: Size of the hidden state.
        spectral_radius: Largest absolute eigenvalue of the recurrent matrix; below 1, so that the
            hidden state forgets its initial value.
        input_scale: Range of the input weights.
        ridge: Strength of the penalty on the readout.
        seed: Of the fixed weights.

    Shape:
        `(B, T, D)` -> the same

    Raises:
        ValueError: If a count is below 1, the radius or the penalty is not positive, or `fit` gets too
            few states.

    Source: Jaeger 2001, 'The "echo state" approach to analysing and training recurrent neural
    networks'.

    Examples:
        >>> model = EchoStateNetwork(3, 50)
        >>> model.fit(torch.randn(2, 40, 3)).forecast(torch.zeros(2, 5, 3), 10).shape
        torch.Size([2, 10, 3])
    """

    inner: Tensor
    outer: Tensor

    @checked
    def __init__(
        self,
        num_features: int,
        hidden_size: int = 500,
        spectral_radius: float = 0.9,
        input_scale: float = 0.5,
        ridge: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__(num_features, hidden_size)
        if not (spectral_radius > 0 and ridge > 0):
            raise ValueError(
                f"spectral_radius and ridge must be positive, got {spectral_radius} and {ridge}"
            )
        self.spectral_radius = spectral_radius
        self.input_scale = input_scale
        self.ridge = ridge
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(hidden_size, hidden_size, generator=generator)
        inner *= spectral_radius / torch.linalg.eigvals(inner).abs().max()
        outer = input_scale * (2 * torch.rand(num_features, hidden_size, generator=generator) - 1)
        self.register_buffer("inner", inner)
        self.register_buffer("outer", outer)
        self.readout = nn.Linear(hidden_size, num_features)

    def start(self, x: Tensor) -> Any:
        return x.new_zeros(len(x), self.hidden_size)

    def remember(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        hidden = torch.tanh(x @ self.outer + memory @ self.inner)
        return hidden, hidden

    @checked
    @torch.no_grad()
    def fit(self, sequences: Tensor, washout: int = 20) -> "EchoStateNetwork":
        """Solve for the readout by ridge regression, and return the network.

        Args:
            sequences: `(N, T, D)`.
            washout: Number of states at the beginning of each that only initialize the hidden state.
        """
        if sequences.ndim != 3 or sequences.shape[1] < washout + 2:
            raise ValueError(
                f"fit needs sequences (N, T, D) of more than washout + 1 = {washout + 1} states, "
                f"got shape {tuple(sequences.shape)}"
            )
        hidden, _ = self.follow(sequences[:, :-1])
        rows = hidden[:, washout:].flatten(0, 1).double()
        change = sequences.diff(dim=1)[:, washout:].flatten(0, 1).double()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        penalty = self.ridge * len(rows) * torch.eye(rows.shape[1]).to(rows)
        solution = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ change)
        self.readout.weight.copy_(solution[:-1].T)
        self.readout.bias.copy_(solution[-1])
        return self
