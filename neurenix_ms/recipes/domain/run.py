"""Training steps and prediction in tiles that all processes share, with checkpoints."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms._core.dims import SpatialDims
from neurenix_ms._core.io.atomic import move, replacing
from neurenix_ms._core.io.room import save_to
from neurenix_ms.datasets import create_array
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.execution.progress import progress_bar
from neurenix_ms.execution.run.setting import Schedule, Setting, TileSize, Whole, settle
from neurenix_ms.recipes.domain.arrays import open_zarr
from neurenix_ms.recipes.domain.processes import Processes

Norm = Literal["batch", "group", "instance"] | None


@dataclass
class Run:
    """A network, its arrays, and how the processes share them.

    Args:
        settings: Everything that the weights depend on but the number of steps, for the checkpoint.
        model: The network.
        x: The input on disk.
        target: What the network shall return, on disk.
        tile_size: Edge length, or "auto" for a tile per process; then one process runs the plain model.
        whole: Names of the parts run whole, or "auto".
        schedule: Of the tiles.
        processes: Those that share the tiles.
        visible: Whether the first process shows its progress.
        shared: Names of the parts that processes share.
    """

    settings: dict[str, Any]
    model: nn.Module
    x: Any
    target: Any
    tile_size: TileSize
    whole: Whole
    schedule: Schedule
    processes: Processes
    visible: bool = False
    shared: tuple[str, ...] = ()

    def step(self) -> Tensor:
        """Add the gradients of the whole input, and return its loss."""
        return accumulate_gradients(
            self.model,
            self.x,
            self.target,
            F.mse_loss,
            self._tiles(self.processes.size),
            whole=self.whole,
            mesh=self.processes.mesh,
            schedule=self.schedule,
            shared=self.shared,
        )

    def predict(self, out: Any) -> None:
        """Write the result; every process writes its own tiles."""
        tiled = TiledModel(
            self.model,
            self._tiles(self.processes.size),
            spatial_dims=self.dims,
            whole=self.whole,
            mesh=self.processes.mesh,
            schedule=self.schedule,
            shared=self.shared,
            progress=self.visible,
        )
        tiled(self.x, out)

    @property
    def dims(self) -> Any:
        """Number of spatial axes."""
        return len(self.x.shape) - 2

    @property
    def like(self) -> Tensor:
        """An empty tensor with the dtype of the network."""
        return next(self.model.parameters()).new_empty(0)

    def setting(self, num_ranks: int) -> Setting | None:
        """Return how tiles run on this number of ranks; None where one tile holds the input."""
        shape, like = tuple(self.x.shape), self.like
        options = self._tiles(num_ranks), self.whole, None, num_ranks, self.schedule
        return settle(self.model, shape, like, *options, shared=self.shared)

    def _tiles(self, num_ranks: int) -> TileSize:
        """Return the tile size for this number of processes."""
        single = num_ranks == 1 and self.tile_size == "auto"
        return tuple(self.x.shape[2:]) if single else self.tile_size


def network(
    features: list[int], norm: Norm, dims: SpatialDims, seed: int, precision: int
) -> nn.Module:
    """Return a U-Net of one channel in float32 or float64."""
    torch.manual_seed(seed)
    model = UNet(1, 1, features, norm=norm, spatial_dims=dims, remember=False)
    return model.double() if precision == 64 else model


def train(
    run: Run,
    steps: int,
    path: Path,
    checkpoint_every: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train for some steps in all, from the last checkpoint if there is one; return their losses.

    Args:
        run: What is trained.
        steps: Steps, those before the checkpoint included.
        path: File of the checkpoint, which the first process writes.
        checkpoint_every: Steps between checkpoints.
        on_step: Called with the number of every finished step.

    Raises:
        ValueError: If the checkpoint is of a run with other settings.
    """
    optimizer = torch.optim.SGD(run.model.parameters(), 0.02, momentum=0.9)
    losses = _resumed(run, optimizer, path) if path.exists() else []
    run.processes.wait()  # no process writes a checkpoint that another one still reads
    run.model.train()
    first = run.processes.rank == 0
    with progress_bar(run.visible and first, "training", steps, "step") as advance:
        for step in range(1, steps + 1):
            if step > len(losses):
                optimizer.zero_grad()
                losses.append(float(run.step()))
                optimizer.step()
                if first and (step % checkpoint_every == 0 or step == steps):
                    _store(run, optimizer, losses, path)
                on_step(step)
            advance()
    return losses


def predict(run: Run, folder: Path) -> Path:
    """Write the result to `y.zarr`, in chunks of a tile, once it is complete."""
    run.model.eval()
    part, path = folder / ".y.part.zarr", folder / "y.zarr"
    if run.processes.rank == 0:
        setting = run.setting(run.processes.size)
        size = run.x.shape[2:]
        edge = size if setting is None else setting.grid.edge
        chunks = (1, 1, *(min(e, n) for e, n in zip(edge, size, strict=True)))
        dtype = str(run.like.dtype).removeprefix("torch.")
        create_array(part, run.x.shape, dtype, chunks=chunks, overwrite=True)
    run.processes.wait()
    run.predict(open_zarr(part, "r+"))
    run.processes.wait()
    if run.processes.rank == 0:
        move(part, path)
    run.processes.wait()
    return path


def digest(model: nn.Module) -> str:
    """Return a hash of all weights and buffers."""
    state = model.state_dict().values()
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state)).hexdigest()


def _store(run: Run, optimizer: torch.optim.Optimizer, losses: list[float], path: Path) -> None:
    content = {
        "settings": run.settings,
        "model": run.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": losses,
    }
    with replacing(path) as file:
        save_to(file, content)


def _resumed(run: Run, optimizer: torch.optim.Optimizer, path: Path) -> list[float]:
    found = torch.load(path, weights_only=True)
    if found["settings"] != run.settings:
        raise ValueError(
            f"the checkpoint in --out must be of a run with {run.settings}, got "
            f"{found['settings']}; choose another --out, or --fresh"
        )
    run.model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    losses: list[float] = found["losses"]
    return losses
