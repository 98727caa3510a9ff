"""Images and volumes in files as training data: pairs of input and target, cut into crops."""

import glob
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.checks import check_integer
from neurenix_ms.datasets import RandomCrops, open_array
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.fitting.loading import FitData, num_held_out

Paths = str | list[str]


class View:
    """One image `(C, *S)` of an array `(B, C, *S)` on disk, or a part along its first spatial axis.

    Args:
        images: The array.
        number: Number of the image.
        start: First row of the part.
        stop: Row after the last one.
        with_channels: Whether the axis of channels stays; classes `(*S)` have none.
    """

    def __init__(
        self, images: DiskArray, number: int, start: int, stop: int, with_channels: bool = True
    ) -> None:
        self.images, self.number, self.start = images, number, start
        self.with_channels = with_channels
        channels, _, *rest = images.shape[1:]
        self.shape = ((channels,) if with_channels else ()) + (stop - start, *rest)

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        if not self.with_channels:
            index = (0, *index)
        channels, first, *rest = index
        return self.images[(self.number, channels, self._moved(first), *rest)]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the values at points of one channel, as `DiskArray.at` does."""
        front = [self.number] if self.with_channels else [self.number, 0]
        moved = points.copy()
        moved[:, int(self.with_channels)] += self.start
        return self.images.at(np.concatenate([np.tile(front, (len(points), 1)), moved], axis=1))

    def _moved(self, at: Any) -> Any:
        if isinstance(at, slice):
            return slice(at.start + self.start, at.stop + self.start)
        return at + self.start


class Images(FitData):
    """Random crops of images or volumes in files, with a target for each.

    The last images are held out for validation; of a single image, its last rows. Only the crops are
    read, so the files may be larger than memory.

    Args:
        inputs: A file, a pattern such as `images/*.tif`, or a list of them, in the formats of
            `open_array`.
        targets: As many files of the same sizes, in the same order.
        size: Size of the crops in pixels or voxels, one number or one per axis.
        num_samples: Number of crops in an epoch.
        classes: Whether the targets are classes, one integer per pixel or voxel; otherwise they are
            values.
        spatial_dims: Number of spatial axes, the last ones of a file.
        first: Meaning of the axis before them: channels, or images of one channel.
        key: Name of the inputs in files with several arrays.
        target_key: Name of the targets.
        reading: Further arguments of `open_array` for the inputs: shape, dtype, offset, fill.
        target_reading: The same for the targets.
        class_weights: How often a crop has class 0, 1, ... in its center, relative to how often it
            occurs; see `RandomCrops`.
        batch_size: Crops of a batch.
        num_workers: Number of data loader processes.
        validation: Fraction of the images, or of the rows of a single image, that is held out.
        seed: Seed of the crops.

    Raises:
        ValueError: If there is no such file, the files do not fit each other, or they are smaller than a
            crop.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("image", "labels"):
        ...         np.save(f"{folder}/{name}.npy", np.zeros((40, 30), "uint8"))
        ...     data = Images(f"{folder}/image.npy", f"{folder}/labels.npy", size=8)
        ...     crop, label = data.sets[0][0]
        >>> crop.shape, label.dtype
        (torch.Size([1, 8, 8]), torch.int64)
    """

    def __init__(
        self,
        inputs: Paths,
        targets: Paths,
        size: int | list[int] = 64,
        num_samples: int = 200,
        *,
        classes: bool = True,
        spatial_dims: Literal[1, 2, 3] = 2,
        first: Literal["channels", "batch"] = "channels",
        key: str | int | None = None,
        target_key: str | int | None = None,
        reading: dict[str, Any] | None = None,
        target_reading: dict[str, Any] | None = None,
        class_weights: list[float] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, validation, seed)
        self.inputs = inputs
        self.targets = targets
        self.size = size
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.first = first
        self.key, self.target_key = key, target_key
        self.reading, self.target_reading = dict(reading or {}), dict(target_reading or {})
        self.class_weights = None if class_weights is None else dict(enumerate(class_weights))

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Return crops of the training images and of the held-out ones."""
        inputs = self._opened("inputs", self.inputs, self.key, self.reading)
        targets = self._opened("targets", self.targets, self.target_key, self.target_reading)
        if len(inputs) != len(targets):
            raise ValueError(
                f"targets must be {len(inputs)} images as inputs are, got {len(targets)}"
            )
        for (x, n), (y, _) in zip(inputs, targets, strict=True):
            if x.shape[2:] != y.shape[2:]:
                raise ValueError(
                    f"targets must have the spatial size {x.shape[2:]} of inputs, got {y.shape[2:]} in "
                    f"{y.path}"
                )
            if self.classes and y.shape[1] != 1:
                raise ValueError(
                    f"targets of classes must have one channel, got {y.shape[1]} in {y.path}, image {n}"
                )
        seen, held_out = self._parts(inputs)
        return self._crops(inputs, targets, seen, 0), (
            self._crops(inputs, targets, held_out, 1) if held_out else None
        )

    def _opened(
        self, name: str, paths: Paths, key: str | int | None, reading: dict[str, Any]
    ) -> list[tuple[DiskArray, int]]:
        """Return every image: its file, and its number there."""
        return [
            (array, number)
            for path in files_of(name, paths)
            for array in [open_images(path, key, reading, self.spatial_dims, self.first)]
            for number in range(array.shape[0])
        ]

    def _parts(self, images: Sequence[tuple[DiskArray, int]]) -> tuple[list[Any], list[Any]]:
        """Return number, first row and last row of the images to train on, and of those held out."""
        whole = [(i, 0, int(x.shape[2])) for i, (x, _) in enumerate(images)]
        if len(whole) == 1:
            rows = whole[0][2]
            cut = rows - num_held_out(rows, self.validation)
            edge = self.size if isinstance(self.size, int) else self.size[0]
            if cut < rows and min(cut, rows - cut) < edge:
                raise ValueError(
                    f"validation of a single image must leave {edge} rows, the edge of a crop, on both "
                    f"sides, got {cut} and {rows - cut}; set --data.size or --data.validation"
                )
            return [(0, 0, cut)], [(0, cut, rows)] if cut < rows else []
        cut = len(whole) - num_held_out(len(whole), self.validation)
        return whole[:cut], whole[cut:]

    def _crops(self, inputs: Any, targets: Any, parts: Any, held_out: int) -> RandomCrops:
        return RandomCrops(
            [View(inputs[i][0], inputs[i][1], start, stop) for i, start, stop in parts],
            [
                View(targets[i][0], targets[i][1], start, stop, not self.classes)
                for i, start, stop in parts
            ],
            size=self.size,
            num_samples=max(1, self.num_samples // 4) if held_out else self.num_samples,
            class_weights=None if held_out else self.class_weights,
            transform=with_classes if self.classes else as_floats,
            seed=self.seed + held_out,
        )


def files_of(name: str, paths: Paths) -> list[str]:
    """Return the files of paths and patterns, those of a pattern in alphabetical order."""
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        some = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not some:
            raise ValueError(f"{name} must be files that exist, got no file for {path!r}")
        found += some
    if not found:
        raise ValueError(f"{name} must be one file or more, got none")
    return found


def open_images(
    path: str,
    key: str | int | None,
    reading: dict[str, Any],
    spatial_dims: Literal[1, 2, 3],
    first: Literal["channels", "batch"],
) -> DiskArray:
    """Open a file as `(B, C, *S)`."""
    known = ("shape", "dtype", "offset", "fill")
    if unknown := sorted(set(reading) - set(known)):
        raise ValueError(f"reading must hold some of {list(known)}, got {unknown}")
    return open_array(path, key, **reading).images(spatial_dims, first)


def with_classes(crop: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a crop as numbers of float32, and its target as classes."""
    return crop.float(), target.long()


def as_floats(crop: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a crop and its target as numbers of float32."""
    return crop.float(), target.to(torch.float32)
