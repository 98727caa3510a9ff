"""Random crops are pieces of their arrays, the same for a seed, an epoch and a number."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from neurenix_ms.datasets import RandomCrops, Windows, create_array, open_array
from neurenix_ms.datasets.chunks import KeptChunks


def arrays(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose values are its positions, and their parities as classes."""
    x = torch.arange(float(np.prod(size))).reshape(1, *size)
    return x, x[0].long() % 2


@pytest.mark.parametrize(("size", "crop"), [((50,), 7), ((20, 31), [5, 8]), ((9, 10, 11), 4)])
def test_a_crop_is_a_piece_of_its_array_and_its_target(size, crop):
    x, y = arrays(*size)
    edges = [crop] * len(size) if isinstance(crop, int) else crop
    crops = RandomCrops(x, y, size=crop, num_samples=20)
    corners = set()
    for piece, target in crops:
        corner = np.unravel_index(int(piece.flatten()[0]), size)
        at = tuple(slice(c, c + k) for c, k in zip(corner, edges, strict=True))
        assert torch.equal(piece, x[(slice(None), *at)])
        assert torch.equal(target, y[at])
        corners.add(corner)
    assert len(corners) > 10


def test_a_crop_depends_on_seed_epoch_and_number_only():
    x, _ = arrays(40, 40)
    first, second = (RandomCrops(x, size=8, num_samples=6, seed=3) for _ in range(2))
    second[5]
    assert all(torch.equal(first[i], second[i]) for i in (4, 0, 2))
    second.set_epoch(1)
    assert not all(torch.equal(first[i], second[i]) for i in range(6))
    other = RandomCrops(x, size=8, num_samples=6, seed=4)
    assert not all(torch.equal(first[i], other[i]) for i in range(6))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_crops(context, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((1, 30, 40), "float32"))
    crops = RandomCrops(open_array(tmp_path / "x.npy"), size=8, num_samples=6)
    loader = DataLoader(crops, batch_size=2, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), torch.stack([crops[i] for i in range(6)]))


def test_every_position_is_drawn_equally_often():
    x = torch.arange(5.0)[None]
    crops = RandomCrops(x, size=2, num_samples=4000)
    counts = torch.bincount(torch.stack([c[0, 0] for c in crops]).long(), minlength=4)
    assert counts.min() > 900
    assert counts.max() < 1100


def test_arrays_are_drawn_by_the_number_of_their_crops():
    inputs = [torch.zeros(1, 11), torch.ones(1, 31)]
    crops = RandomCrops(inputs, size=2, num_samples=4000)
    assert abs(float(torch.stack([c[0, 0] for c in crops]).mean()) - 0.75) < 0.03


def test_class_weights_set_how_often_a_class_is_in_the_center():
    labels = torch.zeros(100, 100, dtype=torch.long)
    labels[:10] = 1  # a tenth of the pixels
    labels[10:20] = 2
    x = torch.zeros(1, 100, 100)
    crops = RandomCrops(x, labels, size=1, num_samples=3000, class_weights={0: 1, 1: 8})
    drawn = torch.bincount(torch.stack([y[0, 0] for _, y in crops]), minlength=3) / 3000
    assert abs(float(drawn[1]) - 0.5) < 0.03  # 0.1 * 8 of 0.1 * 8 + 0.8 * 1
    assert drawn[2] == 0


def test_centers_lie_in_the_mask():
    mask = np.zeros((30, 30), bool)
    mask[12:15, 20] = True
    x, _ = arrays(30, 30)
    for piece in RandomCrops(x, size=5, mask=mask, num_samples=10):
        row, column = divmod(int(piece[0, 2, 2]), 30)
        assert mask[row, column]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 50}, r"inputs must be at least \(50, 50\) long, got \(40, 40\)"),
        ({"size": [8]}, "size must have 2 entries|size"),
        ({"targets": torch.zeros(39, 40)}, r"targets must have the spatial size \(40, 40\)"),
        ({"targets": [torch.zeros(40, 40)] * 2}, "targets must be 1 arrays as inputs are, got 2"),
        ({"class_weights": {1: 2.0}}, "class_weights needs targets of classes"),
        ({"targets": torch.zeros(40, 40), "class_weights": {1: 0.0}}, "a weight above 0"),
        ({"inputs": []}, "arrays must be one or more, got an empty list"),
        ({"inputs": [1.0]}, "or from open_array, got float"),
        (
            {"inputs": [torch.zeros(1, 40, 40), torch.zeros(40, 40)]},
            "with 2 spatial axes, got shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {"inputs": torch.zeros(1, 40, 40), "size": 8, "num_samples": 1, **options}
    with pytest.raises(ValueError, match=message):
        RandomCrops(options.pop("inputs"), **options)


def test_a_mask_that_leaves_nothing_is_named_when_a_crop_is_drawn(monkeypatch):
    monkeypatch.setattr("neurenix_ms.datasets.crops.MOST_DRAWS", 50)
    crops = RandomCrops(torch.zeros(1, 9), size=3, num_samples=1, mask=torch.zeros(9))
    with pytest.raises(ValueError, match="must leave centers to draw, got none in 50 draws"):
        crops[0]
    with pytest.raises(IndexError, match="index must be below 1, got 1"):
        crops[1]


@pytest.mark.parametrize(("step", "horizon"), [(1, 0), (2, 3), (5, 1)])
def test_windows_are_all_pieces_of_their_series(step, horizon):
    series = [torch.randn(23, 2), torch.randn(3, 2), torch.randn(11, 2)]
    windows = Windows(series, 4, horizon=horizon, step=step)
    expected = [
        x[start : start + 4 + horizon]
        for x in series
        for start in range(0, len(x) - 3 - horizon, step)
    ]
    assert len(windows) == len(expected)
    for item, piece in zip(windows, expected, strict=True):
        whole = torch.cat(item) if horizon else item
        assert torch.equal(whole, piece)


def test_series_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"must have 6 steps or more, got \[5, 2\]"):
        Windows([torch.zeros(5), torch.zeros(2)], 4, horizon=2)
    with pytest.raises(IndexError, match="index must be below 2, got 2"):
        Windows(torch.zeros(5), 4)[2]


@pytest.mark.parametrize(("kind", "capacity"), [("npy", 6000), ("zarr", 6000), ("zarr", 2**20)])
def test_crops_of_files_are_those_of_memory(kind, capacity, tmp_path, monkeypatch):
    if kind == "zarr":
        pytest.importorskip("zarr")
    monkeypatch.setattr("neurenix_ms.datasets.chunks.CAPACITY", capacity)
    x, y = (one.numpy() for one in arrays(40, 31))
    y = (y * (np.arange(31) < 9)).astype("uint8")
    mask = np.ones_like(y)
    mask[:, ::3] = 0
    opened = []
    for number, values in enumerate((x, y, mask)):
        path = tmp_path / f"{number}.{kind}"
        made = create_array(path, values.shape, values.dtype, chunks=(1, 8, 12)[-values.ndim :])
        made[...] = values
        opened.append(open_array(path))
    options = {"size": 7, "num_samples": 30, "class_weights": {0: 1, 1: 9}}
    memory = RandomCrops([x, x], [y, y], mask=[mask, mask], **options)
    disk = RandomCrops(*([one, one] for one in opened[:2]), mask=[opened[2]] * 2, **options)
    for _ in range(2):
        for i in range(30):
            for one, other in zip(memory[i], disk[i], strict=True):
                assert torch.equal(one, other)
                other.zero_()  # no part of the file


VALUES = np.arange(300, dtype="int16").reshape(20, 15)


class Counting:
    """A chunked array that notes what is read of it."""

    shape, dtype, chunks = (20, 15), np.dtype("int16"), (8, 6)

    def __init__(self):
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return VALUES[index]


def test_an_array_that_fits_is_read_once():
    source, random = Counting(), np.random.default_rng(0)
    kept = KeptChunks(source, capacity=600)
    np.testing.assert_array_equal(kept[2:7, 3:9], VALUES[2:7, 3:9])
    assert source.reads == [np.s_[0:8, 0:12]]  # two chunks at once
    np.testing.assert_array_equal(kept[7:17, 0:9], VALUES[7:17, 0:9])
    assert len(source.reads) == 5  # the four chunks that are new
    np.testing.assert_array_equal(kept[0:20:3, 0:15], VALUES[::3])  # left to the array
    assert kept[3:3, 2:9].shape == (0, 7)
    points = np.array([[19, 14], [0, 0], [8, 6], [19, 13]])
    np.testing.assert_array_equal(kept.at(points), VALUES[tuple(points.T)])
    assert source.reads[6:] == [np.s_[16:20, 12:15]]
    for _ in range(30):
        start, stop = np.sort(random.integers(0, (21, 16), (2, 2)), axis=0).tolist()
        index = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        piece = kept[index]
        np.testing.assert_array_equal(piece, VALUES[index])
        piece[...] = -1  # a copy
    np.testing.assert_array_equal(kept[0:20, 0:15], VALUES)
    np.testing.assert_array_equal(kept[0:20:3, 0:15], VALUES[::3])
    areas = [VALUES[index].size for index in source.reads]
    assert sum(areas) == VALUES.size + VALUES[::3].size


def test_a_chunk_that_could_not_be_read_is_read_again():
    class Broken(Counting):
        def __getitem__(self, index):
            if not self.reads:
                self.reads.append(index)
                raise OSError("the disk is broken")
            return super().__getitem__(index)

    kept = KeptChunks(Broken(), capacity=600)
    with pytest.raises(OSError, match="the disk is broken"):
        _ = kept[0:4, 0:4]
    np.testing.assert_array_equal(kept[0:4, 0:4], VALUES[:4, :4])


def test_chunks_are_read_once_up_to_a_number_of_bytes():
    values, source = VALUES, Counting()
    kept = KeptChunks(source, capacity=4 * 8 * 6 * 2)  # four chunks
    for index in (np.s_[7:9, 4:14], np.s_[0:16, 0:5], np.s_[3:3, 2:9], np.s_[18:20, 13:15]):
        np.testing.assert_array_equal(kept[index], values[index])
    points = np.array([[19, 14], [0, 0], [8, 6]])
    np.testing.assert_array_equal(kept.at(points), values[tuple(points.T)])
    assert len(source.reads) == 6  # a slice, and five chunks
    np.testing.assert_array_equal(kept[0:20:3, 0:15], values[::3])  # left to the array
    np.testing.assert_array_equal(kept[0:20, 0:15], values)
    assert len(source.reads) == 8
