"""Random crops of images and volumes that may be larger than the memory, and windows of series."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_integers, check_number
from neurenix_ms.datasets.arrays import DiskArray

MOST_DRAWS = 10_000  # of a center, before a crop is given up
DRAWN_AT_ONCE = 32  # centers whose class is read together
Item = Tensor | tuple[Tensor, Tensor]


class RandomCrops(Dataset[Item]):
    """Draw crops of one size from arrays of any size, in memory or on disk.

    Use it to train on images and volumes that do not fit in memory: only the crops are read. Item `i` of
    an epoch depends only on `seed`, the epoch and `i`, so a resumed run gets the same crops, with any
    number of workers. Call `set_epoch` before every epoch; otherwise all epochs have the same crops.

    Args:
        inputs: Arrays `(C, *S)`, one or a list; tensors, NumPy arrays, or what `open_array` returns.
        targets: As many arrays, `(C, *S)` with numbers or `(*S)` with classes.
        size: Size of the crops in pixels or voxels, one number or one per axis.
        num_samples: Number of crops in an epoch.
        class_weights: How often a crop has a pixel of each class in its center, relative to how often
            the class occurs; classes that are not listed get the weight 0. Needs targets of classes.
        mask: As many arrays `(*S)`; crops are centered at pixels where they are not 0.
        transform: Applied to every crop, or to crop and target.
        seed: Seed of the random crops.

    Raises:
        ValueError: If arrays do not fit each other or are smaller than `size`; for an item, if no center
            with a weight was found in 10,000 draws.
        IndexError: If there is no such item.

    Examples:
        >>> image, labels = torch.rand(3, 200, 150), torch.zeros(200, 150, dtype=torch.long)
        >>> crops = RandomCrops(image, labels, size=64, num_samples=10)
        >>> crop, label = crops[0]
        >>> crop.shape, label.shape
        (torch.Size([3, 64, 64]), torch.Size([64, 64]))
    """

    @checked
    def __init__(
        self,
        inputs: Any,
        targets: Any = None,
        *,
        size: int | Sequence[int],
        num_samples: int,
        class_weights: Mapping[int, float] | None = None,
        mask: Any = None,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.inputs = _listed(inputs)
        self.targets = None if targets is None else _listed(targets)
        self.mask = None if mask is None else _listed(mask)
        self.size = _edges(size, len(self.inputs[0].shape) - 1)
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.class_weights = class_weights
        self.transform = transform
        self.seed = check_integer("seed", seed, 0)
        self.epoch = 0
        self._check()
        self._most = max(self.class_weights.values()) if self.class_weights else 1.0
        self._half = np.array(self.size) // 2
        self._free = np.array([_spatial(x) for x in self.inputs]) - self.size + 1  # corners
        places = self._free.prod(1, dtype=float)
        self._ends = np.cumsum(places / places.sum())[:-1]

    def _check(self) -> None:
        dims = len(self.size)
        for number, x in enumerate(self.inputs):
            if len(x.shape) != dims + 1:
                raise ValueError(
                    f"inputs must be arrays (C, *S) with {dims} spatial axes, got shape {tuple(x.shape)}"
                )
            if any(n < k for n, k in zip(_spatial(x), self.size, strict=True)):
                raise ValueError(
                    f"inputs must be at least {tuple(self.size)} long, got {_spatial(x)}"
                )
            for name, others in (("targets", self.targets), ("mask", self.mask)):
                if others is None:
                    continue
                if len(others) != len(self.inputs):
                    raise ValueError(
                        f"{name} must be {len(self.inputs)} arrays as inputs are, got {len(others)}"
                    )
                if tuple(others[number].shape[-dims:]) != _spatial(x):
                    raise ValueError(
                        f"{name} must have the spatial size {_spatial(x)} of inputs, got "
                        f"{tuple(others[number].shape)}"
                    )
        if self.class_weights is not None:
            if self.targets is None or any(len(y.shape) != dims for y in self.targets):
                raise ValueError(
                    "class_weights needs targets of classes with shape (*S), got others"
                )
            weights = {
                int(k): check_number("class_weights", w, minimum=0)
                for k, w in self.class_weights.items()
            }
            if not any(weights.values()):
                raise ValueError(f"class_weights must hold a weight above 0, got {weights}")
            self.class_weights = weights

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops in this epoch."""
        self.epoch = check_integer("epoch", epoch, 0)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index must be below {self.num_samples}, got {index}")
        random = np.random.default_rng((self.seed, self.epoch, index))
        number, corner = self._drawn(random)
        at = tuple(slice(c, c + k) for c, k in zip(corner, self.size, strict=True))
        crop = _piece(self.inputs[number], (slice(None), *at))
        if self.targets is None:
            return crop if self.transform is None else self.transform(crop)
        y = self.targets[number]
        target = _piece(y, (slice(None),) * (len(y.shape) - len(at)) + at)
        return (crop, target) if self.transform is None else self.transform(crop, target)

    def _drawn(self, random: np.random.Generator) -> tuple[int, tuple[int, ...]]:
        """Return the number of an array and the first corner of a crop of it."""
        plain = self.mask is None and self.class_weights is None
        for _ in range(0, MOST_DRAWS, DRAWN_AT_ONCE):
            count = 1 if plain else DRAWN_AT_ONCE
            numbers = np.searchsorted(self._ends, random.random(count), side="right")
            corners = (random.random((count, len(self.size))) * self._free[numbers]).astype(int)
            if plain:
                return int(numbers[0]), tuple(corners[0].tolist())
            taken = random.random(count) < self._weights(numbers, corners + self._half)
            if taken.any():
                first = int(taken.argmax())
                return int(numbers[first]), tuple(corners[first].tolist())
        raise ValueError(
            f"mask and class_weights must leave centers to draw, got none in {MOST_DRAWS} draws"
        )

    def _weights(self, numbers: np.ndarray, centers: np.ndarray) -> np.ndarray:
        """Return the weights of centers, relative to the largest."""
        weights = np.ones(len(centers))
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            if self.mask is not None:
                here = here[_values(self.mask[number], centers[here]) != 0]
                weights[numbers == number] = 0
                weights[here] = 1
            if self.class_weights is not None and self.targets is not None:
                classes = _values(self.targets[number], centers[here]).astype(int)
                known = [self.class_weights.get(one, 0.0) for one in classes.tolist()]
                weights[here] = np.array(known) / self._most
        return weights


class Windows(Dataset[Item]):
    """Cut series into windows, for models that forecast.

    Use it to train on long series: only the windows are read. The series may have different lengths.

    Args:
        series: Arrays `(T, *)`, one or a list; tensors, NumPy arrays, or what `open_array` returns.
        length: Number of steps in a window.
        horizon: Number of steps after the window that form its target; 0 for windows without a target.
        step: Number of steps between the starts of two windows.

    Shape:
        item -> `(length, *)`, or with a horizon `(length, *)` and `(horizon, *)`

    Raises:
        ValueError: If an argument is below its minimum, or no series is long enough.
        IndexError: If there is no such item.

    Examples:
        >>> windows = Windows(torch.arange(10.0), length=4, horizon=2, step=2)
        >>> len(windows), windows[1]
        (3, (tensor([2., 3., 4., 5.]), tensor([6., 7.])))
    """

    @checked
    def __init__(self, series: Any, length: int, *, horizon: int = 0, step: int = 1) -> None:
        self.series = _listed(series)
        self.length = check_integer("length", length, 1)
        self.horizon = check_integer("horizon", horizon, 0)
        self.step = check_integer("step", step, 1)
        whole = self.length + self.horizon
        counts = [max(0, (int(x.shape[0]) - whole) // self.step + 1) for x in self.series]
        if not any(counts):
            lengths = [int(x.shape[0]) for x in self.series]
            raise ValueError(f"a series must have {whole} steps or more, got {lengths}")
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = 0 if number == 0 else int(self._ends[number - 1])
        start = (index - before) * self.step
        stop = start + self.length
        window = _tensor(self.series[number][start:stop])
        if self.horizon == 0:
            return window
        return window, _tensor(self.series[number][stop : stop + self.horizon])


def _listed(arrays: Any) -> list[Any]:
    """Return one array, or several, as a list."""
    listed = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    if not listed:
        raise ValueError("arrays must be one or more, got an empty list")
    for array in listed:
        if not hasattr(array, "shape") or not hasattr(array, "__getitem__"):
            raise ValueError(
                f"arrays must be tensors, NumPy arrays or from open_array, got {type(array).__name__}"
            )
    return listed


def _values(array: Any, points: np.ndarray) -> np.ndarray:
    """Return the values of an array at points `(N, dims)`."""
    if isinstance(array, Tensor | np.ndarray):
        return np.asarray(array[tuple(points.T)])
    if hasattr(array, "at"):
        return array.at(points)
    return np.array([array[tuple(point)] for point in points.tolist()])


def _edges(size: Any, dims: int) -> list[int]:
    if isinstance(size, int):
        size = [size] * dims
    return check_integers("size", size, 1, length=dims)


def _spatial(x: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in x.shape[1:])


def _piece(array: Any, index: tuple[slice, ...]) -> Tensor:
    """Return a slice as a tensor that shares no memory with the array."""
    piece = array[index]
    return _tensor(piece, made=isinstance(array, DiskArray) and piece.base is None)


def _tensor(piece: Any, made: bool = False) -> Tensor:
    """Return a copy as a tensor of the same type; unsigned integers wider than 8 bits become int64.

    Args:
        piece: A tensor or an array.
        made: The array was made for this call, so that it need not be copied.
    """
    if isinstance(piece, Tensor):
        return piece.clone()
    piece = np.asarray(piece)
    dtype = piece.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        dtype = np.dtype("int64")  # torch has no arithmetic for wider unsigned integers
    made = made and piece.dtype == dtype and piece.flags.carray
    return torch.from_numpy(piece if made else np.array(piece, dtype, order="C"))
