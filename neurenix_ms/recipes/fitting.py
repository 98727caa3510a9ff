"""Train a Lightning task with checkpoints, resumption and measured wall and CPU time."""

import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from torch.utils.data import DataLoader, Sampler

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms._core.seeds import generator_of

Index = TypeVar("Index")


def forget_other_run(folder: Path, run: dict[str, Any], fresh: bool = False) -> None:
    """Remove the checkpoint of a run with other settings, or any if `fresh`, and store the settings.

    Args:
        folder: Folder of `last.ckpt` and `config.json`.
        run: Everything that the weights depend on, in the types of JSON.
        fresh: Remove the checkpoint of a run with the same settings, too.
    """
    note = folder / "config.json"
    if fresh or not note.exists() or json.loads(note.read_text(encoding="utf-8")) != run:
        (folder / "last.ckpt").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(run).encode())


class SeededSampler(Sampler[Index]):
    """Sampler whose order depends on seed and epoch only.

    So a resumed run gets the same batches as an uninterrupted one.

    Args:
        seed: Seed of all epochs, not negative.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls it before every epoch."""
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Return the random numbers of the epoch, from their beginning."""
        return generator_of(self.seed, self.epoch)


class EveryGeometryOnce(SeededSampler[int]):
    """Sampler of every geometry once per epoch, in an order and a variant given by seed and epoch.

    Args:
        num_geometries: Number of geometries.
        seed: Seed of all epochs, not negative.
        num_mirrors: Number of variants of each in the dataset: first all originals, then all mirrored
            in one way, and so on.
    """

    def __init__(self, num_geometries: int, seed: int, num_mirrors: int = 4) -> None:
        super().__init__(seed)
        self.num_geometries = num_geometries
        self.num_mirrors = num_mirrors

    def __len__(self) -> int:
        return self.num_geometries

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        order = torch.randperm(self.num_geometries, generator=generator)
        mirror = torch.randint(self.num_mirrors, order.shape, generator=generator)
        return iter((order + self.num_geometries * mirror).tolist())


class CpuClock(Callback):
    """Callback that measures CPU time, including that of interrupted runs up to their last epoch."""

    def __init__(self) -> None:
        self.before = 0.0
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.start = time.process_time()

    def seconds(self) -> float:
        """Return the CPU time so far."""
        return self.before + (time.process_time() - self.start if self.start else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["seconds"]


def fit(
    task: LightningModule,
    loader: DataLoader[Any],
    epochs: int,
    folder: Path,
    *,
    progress: bool = True,
    gradient_clip: float | None = None,
) -> tuple[float, float]:
    """Train a task in place, or resume from `folder/last.ckpt` if it exists.

    Args:
        task: The task, which defines a step.
        loader: Batches, in an order that depends on the epoch only.
        epochs: Passes over the loader.
        folder: Folder in which `last.ckpt` is written after every epoch.
        progress: Show a progress bar.
        gradient_clip: Largest norm of the gradients of a step.

    Returns:
        Wall time and CPU time in seconds, including those of interrupted runs up to their last complete
        epoch.
    """
    wall, cpu = Timer(), CpuClock()
    bar = [TQDMProgressBar(leave=False)] if progress else []
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
        warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[
                wall,
                cpu,
                ModelCheckpoint(folder, "last", enable_version_counter=False),
                *bar,
            ],
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            gradient_clip_val=gradient_clip,
        )
        last = folder / "last.ckpt"
        trainer.fit(task, loader, ckpt_path=str(last) if last.exists() else None)
    return wall.time_elapsed("train"), cpu.seconds()
