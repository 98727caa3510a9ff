"""Train a U-Net on any number of processes, with the same loss curve for all of them.

`python -m neurenix_ms.recipes.distributed --devices 2` trains a small U-Net to denoise waves, and so
does `torchrun --nproc-per-node 2 -m neurenix_ms.recipes.distributed`, on one machine or several. The
batch of a step depends on the number of the step alone, and every process takes its part of it. So
the loss curve does not depend on the number of processes, and an interrupted run, once resumed, ends
with the same weights as an uninterrupted one.
"""

import argparse
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from neurenix_ms import UNet, save
from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms._core.seeds import generator_of, order_of
from neurenix_ms.recipes.options import check_at_least
from neurenix_ms.training import RegressionTask

NUM_WAVES = 4
NOISE = 0.5


class NoisyWaves(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of images of a few plane waves with noise and without, each computed from its index.

    Args:
        num_images: Number of images.
        size: Pixels along both axes.
        seed: Seed of all images, not negative.

    Shape:
        An item is the input `(1, size, size)` and the target of the same shape.
    """

    def __init__(self, num_images: int, size: int, seed: int = 0) -> None:
        self.num_images = num_images
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = generator_of(self.seed, index)
        random = partial(torch.rand, generator=generator)
        across, down, phase = 2 * math.pi * random(3, NUM_WAVES, 1, 1)
        line = torch.linspace(0, 1, self.size)
        slopes = across * line + 2 * down * line[:, None]
        clean = torch.sin(slopes + phase).mean(dim=0, keepdim=True)
        return clean + NOISE * torch.randn(clean.shape, generator=generator), clean


class BatchesOfSteps(Sampler[list[int]]):
    """Sampler of the images of one process in the batch of every step, starting from any step.

    The images are drawn pass by pass, in an order that depends on seed and pass only. Step `s` has the
    images from `s * batch_size` on, for any number of processes; process `rank` of `world_size` takes
    every `world_size`-th of them.

    Args:
        num_images: Images in a pass.
        batch_size: Images of a step in all processes together.
        num_steps: Steps of the whole run.
        first: The step to start from.
        rank: Number of this process.
        world_size: Number of processes.
        seed: Seed of the order, not negative.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        num_steps: int,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.first = first
        self.rank = rank
        self.world_size = world_size
        self.seed = seed

    def __len__(self) -> int:
        return (
            self.num_steps
        )  # of the whole run, because Lightning counts the steps before resuming

    def __iter__(self) -> Iterator[list[int]]:
        orders: dict[int, list[int]] = {}
        for step in range(self.first, self.num_steps):
            draws = range(step * self.batch_size, (step + 1) * self.batch_size)
            passes = {draw // self.num_images for draw in draws}
            orders = {n: orders.get(n) or self._order(n) for n in passes}
            batch = [orders[draw // self.num_images][draw % self.num_images] for draw in draws]
            yield batch[self.rank :: self.world_size]

    def _order(self, number: int) -> list[int]:
        return order_of(self.num_images, self.seed, number).tolist()


class Waves(LightningDataModule):
    """Data module of a run, whose checkpoints hold the step to resume from and the run's options."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.data = NoisyWaves(options.images, options.size, options.seed)
        self.batch_size = options.batch_size
        self.num_steps = options.steps
        self.run = {key: getattr(options, key) for key in RUN}
        self.first = 0

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        trainer = self.trainer
        assert trainer is not None
        place = (self.first, trainer.global_rank, trainer.world_size, self.data.seed)
        batches = BatchesOfSteps(len(self.data), self.batch_size, self.num_steps, *place)
        return DataLoader(self.data, batch_sampler=batches)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"step": self.trainer.global_step, "run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["run"] != self.run:
            raise ValueError(
                f"the checkpoint in --out must be of a run with {self.run}, got {state_dict['run']}; "
                "choose another --out, or --fresh"
            )
        self.first = state_dict["step"]


class LossCurve(Callback):
    """Callback that records the loss of every step over the whole batch, with resumption."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        local = outputs["loss"].detach().clone()
        self.losses.append(float(trainer.strategy.reduce(local, reduce_op="mean")))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = list(state_dict["losses"])


RUN = ("images", "size", "batch_size", "steps", "precision", "seed")


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Callback] = ()) -> list[float]:
    """Train, or resume from `last.ckpt` in `--out`, and return the loss of every step.

    Args:
        argv: Command line without the name of the program; by default that of the process.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: If the checkpoint is of a run with other options; the number of processes may
            change.
    """
    options = _options(argv)
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    torch.manual_seed(options.seed)
    # group norm, because batch norm would use statistics per process, which would change the loss
    model = UNet(1, 1, features=[8, 16], norm="group", remember=False)
    descent = partial(torch.optim.SGD, momentum=0.9)
    task = RegressionTask(model, optimizer=descent, learning_rate=0.1, schedule="one_cycle")
    curve = LossCurve()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # Waves is
        warnings.filterwarnings("ignore", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        trainer = _trainer(options, [curve, *callbacks])
        last = options.out / "last.ckpt"
        resumed = last.exists() and not options.fresh
        trainer.fit(task, datamodule=Waves(options), ckpt_path=last if resumed else None)
    if trainer.is_global_zero:
        options.out.mkdir(parents=True, exist_ok=True)
        save(model, options.out / "model.nx")
        write_atomically(options.out / "curve.json", (json.dumps(curve.losses) + "\n").encode())
        print(f"loss {curve.losses[0]:.4f} -> {curve.losses[-1]:.4f}, {options.out / 'model.nx'}")
    return curve.losses


def _trainer(options: argparse.Namespace, callbacks: list[Callback]) -> Trainer:
    checkpoint = ModelCheckpoint(
        options.out,
        "last",
        every_n_train_steps=options.checkpoint_every,
        enable_version_counter=False,
    )
    num_processes = options.devices * options.machines
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.machines,
        strategy="ddp" if num_processes > 1 else "auto",
        precision=options.precision,
        max_steps=options.steps,
        use_distributed_sampler=False,  # BatchesOfSteps distributes the batches already
        deterministic=True,
        callbacks=[*callbacks, checkpoint],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=not options.quiet,
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.distributed",
        description="Train a U-Net on several processes, with the loss curve of one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=1, help="processes; torchrun overrides it")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu or auto")
    parser.add_argument("--images", type=int, default=512, help="images in a pass")
    parser.add_argument("--size", type=int, default=64, help="pixels along each axis")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="images of a step, in all processes"
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of the whole run")
    parser.add_argument(
        "--checkpoint-every", type=int, default=20, help="steps between checkpoints"
    )
    parser.add_argument("--precision", default="32-true", help="as in Lightning's Trainer")
    parser.add_argument("--seed", type=int, default=0, help="for images, weights and order")
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"), help="results")
    parser.add_argument("--fresh", action="store_true", help="ignore the checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    options.devices = int(os.environ.get("LOCAL_WORLD_SIZE", options.devices))
    options.machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    check_at_least(parser, options, devices=1, images=1, steps=1, checkpoint_every=1, size=4)
    num_processes = options.devices * options.machines
    if options.batch_size < 1 or options.batch_size % num_processes:
        parser.error(
            f"--batch-size must be a multiple of the {num_processes} processes, "
            f"got {options.batch_size}"
        )
    return options
