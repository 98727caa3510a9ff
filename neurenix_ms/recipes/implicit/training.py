"""Train an implicit field on a grid by Adam and L-BFGS, with resumption."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, Adam
from torch.utils.data import DataLoader, TensorDataset

from neurenix_ms.implicit import Normalizer
from neurenix_ms.implicit.normalizer import check_finite
from neurenix_ms.recipes.fitting import SeededSampler, fit
from neurenix_ms.training import RegressionTask

STEPS_PER_EPOCH = 100  # a checkpoint is written after each
ITERATIONS_PER_EPOCH = 50  # of L-BFGS


class OnGrid(nn.Module):
    """Field on a fixed mesh, as a function of parameters alone.

    Args:
        model: The field, called as `model.forward_grid(p, x)`.
        x: The mesh, `(N, d)`.

    Shape:
        `(T, P)` -> `(T, N, out)`
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("x", x, persistent=False)

    def forward(self, p: Tensor) -> Tensor:
        grid: Tensor = self.model.forward_grid(p, self.x)  # type: ignore[operator]
        return grid


class Rows(SeededSampler[int]):
    """Sampler of random rows, without repetition until all are drawn, given by seed and epoch.

    Args:
        num_rows: Number of rows.
        num_drawn: Number of rows per epoch.
        seed: Seed of all epochs, not negative.
    """

    def __init__(self, num_rows: int, num_drawn: int, seed: int) -> None:
        super().__init__(seed)
        self.num_rows = num_rows
        self.num_drawn = num_drawn

    def __len__(self) -> int:
        return self.num_drawn

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        passes = -(-self.num_drawn // self.num_rows)
        order = [torch.randperm(self.num_rows, generator=generator) for _ in range(passes)]
        return iter(torch.cat(order)[: self.num_drawn].tolist())


def train(
    field: Normalizer,
    p: Tensor,
    x: Tensor,
    u: Tensor,
    folder: Path,
    *,
    steps: int = 2000,
    batch_size: int = 32,
    learning_rate: float = 5e-3,
    iterations: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Train a field in place, by Adam with a one-cycle schedule and then by L-BFGS on all data.

    Adam comes close to a minimum, and L-BFGS converges to it. An interrupted run resumes from its last
    checkpoint in `folder`. Call `field.fit` first, which computes the scales of the field.

    Args:
        field: The field in physical units.
        p: Parameters, `(T, P)`.
        x: The mesh, `(N, d)`.
        u: Field values, `(T, N, out)`.
        folder: Folder of the checkpoints.
        steps: Steps of Adam, a multiple of 100; 0 for none.
        batch_size: Rows of `p` per step.
        learning_rate: Peak of the schedule.
        iterations: Iterations of L-BFGS, a multiple of 50; 0 for none.
        seed: Seed of the order of the rows.
        progress: Show a progress bar.

    Returns:
        `relative_error` of the trained field, and the CPU time in seconds, including that of interrupted
        runs.

    Raises:
        ValueError: If the data hold NaN or infinite numbers.
    """
    for name, value in (("p", p), ("x", x), ("u", u)):
        check_finite(name, value)
    data = TensorDataset(field.scaled("p", p), field.scaled("u", u))
    on_grid = OnGrid(field.model, field.scaled("x", x))
    seconds = 0.0
    if steps:
        batch = min(batch_size, len(p))
        rows = Rows(len(p), batch * STEPS_PER_EPOCH, seed)
        adam = RegressionTask(
            on_grid,
            optimizer=partial(Adam, fused=True),
            learning_rate=learning_rate,
            schedule="one_cycle",
        )
        loader = DataLoader(data, batch, sampler=rows)
        seconds += fit(adam, loader, steps // STEPS_PER_EPOCH, folder / "adam", progress=progress)[
            1
        ]
    if iterations:
        with torch.no_grad():
            before = F.mse_loss(on_grid(data.tensors[0]), data.tensors[1])
        optimizer = partial(
            LBFGS,
            max_iter=ITERATIONS_PER_EPOCH,
            history_size=50,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        last = RegressionTask(
            on_grid,
            # scaled to 1 at the start, because torch's L-BFGS ignores small changes of a tiny loss
            lambda output, target: F.mse_loss(output, target) / before.clamp(min=1e-30),
            optimizer=optimizer,
            learning_rate=1.0,
        )
        epochs = iterations // ITERATIONS_PER_EPOCH
        whole = DataLoader(data, len(p))
        seconds += fit(last, whole, epochs, folder / "lbfgs", progress=progress)[1]
    return relative_error(field, p, x, u), seconds


@torch.no_grad()
def relative_error(field: nn.Module, p: Tensor, x: Tensor, u: Tensor) -> float:
    """Return the norm of the error of a field on a grid, divided by the norm of the field."""
    grid: Tensor = field.forward_grid(p, x, chunk_size=100_000)  # type: ignore[operator]
    return ((grid - u).norm() / u.norm()).item()
