"""Recurrent networks that continue a sequence, and their training."""

from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_number
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive


class SequenceModel(Configured, nn.Module):
    """Base class of recurrent networks that predict the next state from all states so far.

    Subclasses define the initial memory (`start`) and its update by one state (`remember`). The
    prediction is the last state plus a change, as a stepper's is.

    Args:
        num_features: Number of features of a state.
        hidden_size: Size of the hidden state.

    Shape:
        `(B, T, D)` -> the same: for every state, the next one

    Raises:
        ValueError: If a count is below 1, or the input is not such a sequence.
        NotImplementedError: If a subclass does not define `start` or `remember`.

    Examples:
        >>> class Echo(SequenceModel):
        ...     def start(self, x):
        ...         return None
        ...     def remember(self, x, memory):
        ...         return x, memory
        >>> model = Echo(num_features=3, hidden_size=3)
        >>> model.readout = nn.Linear(3, 3)
        >>> model.forecast(torch.zeros(2, 5, 3), 10).shape
        torch.Size([2, 10, 3])
    """

    @checked
    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        check_positive(num_features=num_features, hidden_size=hidden_size)
        self.readout: nn.Linear

    def start(self, x: Tensor) -> Any:
        """Return the initial memory for the sequences `x`."""
        raise NotImplementedError

    def remember(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Update the memory by states `(B, D)`; return the hidden state `(B, H)` and the memory."""
        raise NotImplementedError

    def read(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the state after `x`."""
        return x + self.readout(hidden)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.follow(x)
        return self.read(x, hidden)

    def follow(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the hidden states after every state, `(B, T, H)`, and the final memory."""
        self.check_sequence(x)
        memory = self.start(x)
        steps = []
        for state in x.unbind(1):
            hidden, memory = self.remember(state, memory)
            steps.append(hidden)
        return torch.stack(steps, dim=1), memory

    def check_sequence(self, x: Tensor) -> None:
        """Raise unless `x` is a batch of sequences of states with `num_features` features."""
        if x.ndim != 3 or x.shape[2] != self.num_features or x.shape[1] == 0:
            raise ValueError(
                f"a sequence must be (B, T, {self.num_features}), got shape {tuple(x.shape)}"
            )

    @checked
    def forecast(self, history: Tensor, num_steps: int) -> Tensor:
        """Continue a history; after its end, the network reads its own predictions.

        Args:
            history: `(B, T, D)`.
            num_steps: Number of states to predict.
        """
        check_positive(num_steps=num_steps)
        steps, memory = self.follow(history)
        x = self.read(history[:, -1], steps[:, -1])
        states = [x]
        for _ in range(num_steps - 1):
            hidden, memory = self.remember(x, memory)
            x = self.read(x, hidden)
            states.append(x)
        return torch.stack(states, dim=1)


@checked
def fit_sequences(
    model: SequenceModel,
    sequences: Tensor,
    *,
    validation: Tensor,
    length: int = 50,
    num_iterations: int = 2000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> SequenceModel:
    """Train a recurrent network to predict the next state, and return it with its best weights.

    Use it for the baselines that steppers are compared with; `fit_hierarchy` trains the steppers.

    Args:
        model: An `LSTMForecaster` or a `ClockworkRNN`; an `EchoStateNetwork` has its own `fit`.
        sequences: `(N, T, D)`.
        validation: Other sequences, by which the best weights are chosen.
        length: Number of states of a training window.
        num_iterations: Steps of Adam, with a learning rate that decays to 0.
        batch_size: Windows per step.
        learning_rate: Initial learning rate.
        seed: For the windows.
        progress: Show a progress bar.

    Raises:
        ValueError: If a count is below 1, or the sequences are not longer than a window.
        ImportError: If tqdm is missing.

    Examples:
        >>> from neurenix_ms.timestepping import LSTMForecaster
        >>> waves = torch.sin(0.1 * torch.arange(60)).expand(4, -1).unsqueeze(2)
        >>> model = fit_sequences(
        ...     LSTMForecaster(1, 4), waves, validation=waves, num_iterations=2, progress=False
        ... )
        >>> model.forecast(waves[:, :5], 3).shape
        torch.Size([4, 3, 1])
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("training needs tqdm: pip install 'neurenix_ms[ode]'") from error
    check_positive(num_iterations=num_iterations, batch_size=batch_size, length=length)
    check_number("learning_rate", learning_rate, above=0)
    for name, data in (("sequences", sequences), ("validation", validation)):
        if data.ndim != 3 or data.shape[1] <= length:
            raise ValueError(
                f"{name} must be (N, T, D) with more than length = {length} states, "
                f"got shape {tuple(data.shape)}"
            )
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations)
    generator = torch.Generator().manual_seed(seed)
    best, best_error = model.state_dict(), torch.inf
    windows = sequences.unfold(1, length + 1, 1)  # (N, num_windows, D, length + 1)
    for i in tqdm(range(1, num_iterations + 1), desc="training", disable=not progress):
        which = [torch.randint(n, (batch_size,), generator=generator) for n in windows.shape[:2]]
        x = windows[which[0], which[1]].transpose(1, 2)
        optimizer.zero_grad()
        _error(model, x).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if i % 100 == 0 or i == num_iterations:
            with torch.no_grad():
                held_out = _error(model, validation).item()
            if held_out < best_error:
                best_error = held_out
                best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return model


def _error(model: SequenceModel, x: Tensor) -> Tensor:
    return (model(x[:, :-1]) - x[:, 1:]).square().mean()
