"""Data modules of `fit`, whose batches depend on the seed and the epoch alone."""

from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler

from neurenix_ms._core.checks import check_integer, check_number
from neurenix_ms._core.seeds import order_of

try:
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise ImportError("fit needs lightning: pip install 'neurenix_ms[fit]'") from error


class EpochOrder(Sampler[int]):
    """Sampler of all items of a dataset once per epoch, in an order given by seed and epoch.

    Lightning calls `set_epoch` before every epoch, which is passed on to the dataset.

    Args:
        dataset: The dataset.
        seed: Seed of all epochs.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in the dataset."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(order_of(len(self), self.seed, self.epoch).tolist())


class FitData(LightningDataModule):
    """Base class of the data modules: a training set, and a held-out one for validation.

    Subclasses define `build`, which is called once, before training.

    Args:
        batch_size: Items of a batch; None if the dataset returns batches.
        num_workers: Number of data loader processes; 0 reads in the training process.
        validation: Fraction of the data that is held out, between 0 and 1.
        seed: Seed of the order and of draws.
    """

    def __init__(
        self, batch_size: int | None, num_workers: int, validation: float, seed: int
    ) -> None:
        super().__init__()
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        check_number("validation", validation, minimum=0)
        if validation >= 1:
            raise ValueError(f"validation must be below 1, got {validation}")
        self.batch_size = batch_size
        self.num_workers = check_integer("num_workers", num_workers, 0)
        self.validation = validation
        self.seed = check_integer("seed", seed, 0)
        self.progress = True  # of what is computed before training
        # of a resumed run, which starts to read before Lightning sets the epoch
        self.first_epoch = 0
        self._sets: tuple[Dataset[Any], Dataset[Any] | None] | None = None

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Return the training set, and the held-out one or None."""
        raise NotImplementedError

    def setup(self, stage: str = "fit") -> None:
        """Build both sets, the first time."""
        self._sets = self._sets or self.build()

    @property
    def sets(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """The training set and the held-out one."""
        self.setup()
        assert self._sets is not None
        return self._sets

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch, in another order every time."""
        order = self.order()
        order.set_epoch(self.first_epoch)
        return DataLoader(
            self.sets[0], self.batch_size, sampler=order, num_workers=self.num_workers
        )

    def order(self) -> Any:
        """Return the sampler of the training set."""
        return EpochOrder(cast(Sized, self.sets[0]), self.seed)

    def val_dataloader(self) -> Any:
        """Return the held-out batches, the same every time; none without held-out data."""
        if self.sets[1] is None:
            return []
        return DataLoader(self.sets[1], self.batch_size, num_workers=self.num_workers)


def num_held_out(count: int, validation: float) -> int:
    """Return how many of some items are held out: at least one if any, and never all."""
    return 0 if validation == 0 else min(max(1, round(validation * count)), count - 1)
