"""Differences from one process, and what each way of running takes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neurenix_ms.execution.run.ranks import Sent
from neurenix_ms.meter import peak_resident_bytes
from neurenix_ms.recipes.domain.processes import Processes
from neurenix_ms.recipes.domain.run import Run


def differences(run: Run, y: Any) -> dict[str, float] | None:
    """Return the largest differences from the whole input on one process; None but on the first.

    That of the output is divided by its standard deviation, that of the gradient by its largest value.
    All processes call it, since they share the training step; only the first holds the whole input.
    """
    whole = _Whole(run) if run.processes.rank == 0 else None
    found: dict[str, float] = {}
    if whole is not None:
        run.model.eval()
        wanted = whole.result()
        got = torch.from_numpy(y[:])
        found["output"] = float((got - wanted).abs().max() / wanted.std())
    run.processes.wait()
    run.model.train()
    run.model.zero_grad()
    value = run.step()
    got = gradient(run)
    run.model.zero_grad()
    if whole is not None:
        expected = whole.step()
        found["loss"] = float(abs(value - expected) / expected)
        wanted = gradient(run)
        found["gradient"] = float((got - wanted).abs().max() / wanted.abs().max())
        run.model.zero_grad()
    run.processes.wait()
    return found if whole is not None else None


def gradient(run: Run) -> Tensor:
    """Return the gradients of all parameters as one vector."""
    return torch.cat([p.grad.ravel() for p in run.model.parameters() if p.grad is not None])


def costs(run: Run, y: Any, rounds: int, length: int | None = None) -> dict[str, Any]:
    """Return time, bytes sent and peak of resident memory of tiles and of the whole input.

    Times are medians of rounds in which all ways take turns, from disk to disk. The whole input runs on
    the first process while the others wait.

    Args:
        run: What is measured.
        y: Array of the result.
        rounds: Number of rounds.
        length: Of the input along its first axis, that the first process runs in place of the whole.
    """
    whole = _Whole(run, length)
    # whether processes share it, call, training mode
    ways: dict[str, tuple[bool, Callable[[], object], bool]] = {
        "inference, whole": (False, lambda: whole.predict(y), False),
        "inference, tiles": (True, lambda: run.predict(y), False),
        "training, whole": (False, whole.step, True),
        "training, tiles": (True, run.step, True),
    }
    visible, run.visible = run.visible, False
    found: dict[str, Any] = {}
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first one warms up
        for name, (shared, call, training) in ways.items():
            run.model.train(training)
            taken, sent = _one(call, shared, run.processes)
            run.model.zero_grad()
            if number:
                times[name].append(taken)
            found[name] = {"sent_bytes": sent.bytes, "collectives": sent.calls}
    for name, (shared, call, training) in ways.items():
        wall, *cpus = (statistics.median(taken) for taken in zip(*times[name], strict=True))
        run.model.train(training)
        peaks = run.processes.gathered(_peak(call, shared, run.processes))
        run.model.zero_grad()
        found[name] |= {
            "wall_seconds": wall,
            "cpu_seconds": cpus,
            "resident_peak_bytes": peaks if shared else peaks[:1],
        }
    run.visible = visible
    return found


class _Whole:
    """Plain PyTorch on the whole input, or its first positions, read from disk as tiles are."""

    def __init__(self, run: Run, length: int | None = None) -> None:
        self.run, self.index = run, (slice(None), slice(None), slice(length))

    @torch.no_grad()
    def result(self) -> Tensor:
        y: Tensor = self.run.model(self._read(self.run.x))
        return y

    def predict(self, out: Any) -> None:
        out[self.index] = self.result().numpy()

    def step(self) -> Tensor:
        y = self.run.model(self._read(self.run.x))
        loss = F.mse_loss(y, self._read(self.run.target))
        loss.backward()
        return loss.detach()

    def _read(self, array: Any) -> Tensor:
        return torch.from_numpy(array[self.index]).to(self.run.like.dtype)


def _one(
    call: Callable[[], object], shared: bool, processes: Processes
) -> tuple[list[float], Sent]:
    """Return wall time and the CPU time of every process that takes part, and what this one sent."""
    processes.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    with Sent() as sent:
        if shared or processes.rank == 0:
            call()
    times = time.perf_counter() - wall, time.process_time() - cpu
    taking_part = processes.gathered(times)[: processes.size if shared else 1]
    return [max(t[0] for t in taking_part), *(t[1] for t in taking_part)], sent


def _peak(call: Callable[[], object], shared: bool, processes: Processes) -> int | None:
    processes.wait()
    peak = peak_resident_bytes(call) if shared or processes.rank == 0 else None
    processes.wait()
    return peak
