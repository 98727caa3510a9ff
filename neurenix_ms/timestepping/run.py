"""Training loop of several networks, which keeps their best weights and writes checkpoints."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.timestepping.banks import Bank
from neurenix_ms.timestepping.shortcuts import BankWithShortcuts, Shortcuts
from neurenix_ms.timestepping.windows import WindowSource, per_channel

NUM_VALIDATION_WINDOWS = 1024


class WindowLoss:
    """Mean squared error of recurrent strides per network, in units of the change over one stride.

    Args:
        mean: Means of the channels, `(C,)`.
        std: Standard deviations of the channels, `(C,)`.
        scale: Standard deviations of the changes over a stride, `(K, C)`.
        weights: Weight of every stride of a window, `(K, horizon)`.
        shortcuts: Linear parts of the networks. The errors are then in units of what they leave.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        scale: Tensor,
        weights: Tensor,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.mean, self.std, self.scale, self.weights = mean, std, scale, weights
        self.shortcuts = shortcuts

    def __call__(self, bank: Bank | BankWithShortcuts, windows: Tensor) -> Tensor:
        mean, std = (per_channel(value, windows.ndim - 2) for value in (self.mean, self.std))
        truth = (windows.transpose(1, 2) - mean) / std  # in the networks' units, (K, T, B, *D)
        gain = per_channel(self.scale / self.std, windows.ndim - 2)
        x = truth[:, 0]
        states = []
        for _ in range(self.weights.shape[1]):
            x = torch.addcmul(x, gain, bank(x))
            states.append(x)
        if self.shortcuts is not None:
            gain = gain * self.shortcuts.rest
        error = (torch.stack(states, dim=1) - truth[:, 1:]) / gain.unsqueeze(1)
        return (self.weights.to(error) * error.square().flatten(2).mean(dim=2)).sum(dim=1)


class TrainingRun:
    """State of a training run that a checkpoint holds: weights, optimizer and the best weights."""

    def __init__(
        self, bank: Bank | BankWithShortcuts, settings: dict[str, Any], stacked: bool
    ) -> None:
        self.bank, self.settings, self.stacked = bank, settings, stacked
        parameters = [p for p in bank.parameters() if p.requires_grad]
        self.fused = parameters[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(
            parameters, lr=settings["learning_rate"], fused=self.fused
        )
        self.scheduler = {  # type: ignore[no-untyped-call]
            "cosine": lambda: CosineAnnealingLR(self.optimizer, settings["num_iterations"]),
            "plateau": lambda: ReduceLROnPlateau(self.optimizer, factor=0.5, patience=5),
            None: lambda: None,
        }[settings["schedule"]]()
        self.generator = torch.Generator().manual_seed(settings["seed"])
        self.iteration = 0
        self.count = len(settings["step_sizes"])
        self.best: list[list[Tensor]] = [self._snapshot(k) for k in range(self.count)]
        self.best_errors = torch.full((self.count,), torch.inf, dtype=torch.float64)
        self.idle = 0  # validation checks since the last improvement

    def train(
        self,
        source: WindowSource,
        held_out: WindowSource,
        loss: WindowLoss,
        patience: int | None,
        checkpoint: str | os.PathLike[str] | None,
        progress: bool,
    ) -> None:
        """Train up to the last iteration, and copy the best weights into the bank."""
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("training needs tqdm: pip install 'neurenix_ms[ode]'") from error
        fixed = held_out.spread(NUM_VALIDATION_WINDOWS)
        held_out_loss = WindowLoss(
            loss.mean, loss.std, loss.scale, held_out.weights, loss.shortcuts
        )
        last, every = self.settings["num_iterations"], self.settings["check_every"]
        bar = tqdm(
            total=last, initial=self.iteration, desc="training all strides", disable=not progress
        )
        if loss.shortcuts is not None and self.iteration == 0:
            self._validate(held_out_loss, fixed)  # the shortcuts alone
        while self.iteration < last and (patience is None or self.idle < patience):
            self._step(loss, source.drawn(self.settings["batch_size"], self.generator))
            bar.update()
            if self.iteration % every == 0 or self.iteration == last:
                self._validate(held_out_loss, fixed)
                worst, least = self.best_errors.max(), self.best_errors.min()
                bar.set_postfix_str(f"relative errors² {least:.1e} to {worst:.1e}")
                if checkpoint is not None:
                    self.save(Path(checkpoint))
        bar.close()
        for k in range(self.count):
            _copy(self.best[k], self.bank.tensors(k))

    def _step(self, loss: WindowLoss, windows: Tensor) -> None:
        self.bank.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss(self.bank, windows).sum().backward()
        self.optimizer.step()
        if isinstance(self.scheduler, CosineAnnealingLR):
            self.scheduler.step()
        self.iteration += 1

    @torch.no_grad()
    def _validate(self, loss: WindowLoss, windows: Tensor) -> None:
        self.bank.eval()
        errors = loss(self.bank, windows).double().cpu()
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(errors.log().mean().item())
        better = errors < self.best_errors
        for k in better.nonzero()[:, 0].tolist():
            self.best[k] = self._snapshot(k)
        self.best_errors = torch.where(better, errors, self.best_errors)
        self.idle = 0 if better.any() else self.idle + 1

    def _snapshot(self, k: int) -> list[Tensor]:
        return [tensor.clone() for tensor in self.bank.tensors(k)]

    def save(self, path: Path) -> None:
        """Write a checkpoint from which the run can be resumed."""
        state = {
            "settings": self.settings,
            "stacked": self.stacked,
            "weights": [self.bank.tensors(k) for k in range(self.count)],
            "best": self.best,
            "best_errors": self.best_errors,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "idle": self.idle,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state that `save` wrote."""
        for k in range(self.count):
            _copy(state["weights"][k], self.bank.tensors(k))
        self.best = state["best"]
        self.best_errors = state["best_errors"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        self.iteration, self.idle = state["iteration"], state["idle"]


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def found(path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint of an earlier run with the same settings, or None if there is no file."""
    if path is None or not Path(path).exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["settings"]
    except Exception as error:  # a corrupted file may raise any exception
        text = str(error).partition("\n")[0]
        raise ValueError(f"{path} must be a checkpoint of fit_hierarchy, got {text}") from error
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{path} must be the checkpoint of a run with {name} = {value}, got "
                f"{theirs.get(name)}; remove it to train from the start"
            )
    return state
