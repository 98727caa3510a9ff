"""Samples on disk: made once, never read when broken, resumed after a kill."""

import os
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
import torch
from disks import POSIX, files_up_to, small_disk

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets.cache import SampleCache


class Maker:
    """Makes the sample of a number and remembers which numbers it was asked for."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, index):
        self.made.append(index)
        generator = torch.Generator().manual_seed(index)
        return {"x": torch.rand(200, generator=generator), "y": torch.tensor(float(index))}


def open_cache(root, make=None, packages=(), **parameters):
    return SampleCache(root, "numbers", parameters, make or Maker(), packages)


def test_a_sample_read_back_is_the_sample_made(tmp_path):
    make = Maker()
    cache = open_cache(tmp_path, make)
    cache.fill(3, progress=False)
    for index in range(3):
        for name, value in Maker()(index).items():
            assert torch.equal(cache[index][name], value)
    assert make.made == [0, 1, 2]


def test_what_is_there_is_not_made_again(tmp_path):
    open_cache(tmp_path).fill(3, progress=False)
    make = Maker()
    cache = open_cache(tmp_path, make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.fill(5, progress=False)
        cache[4]
    assert make.made == [3, 4]


def test_other_parameters_live_in_another_folder(tmp_path):
    first, second = open_cache(tmp_path, size=1), open_cache(tmp_path, size=2)
    first.fill(1, progress=False)
    second.fill(1, progress=False)
    assert first.folder != second.folder
    assert first.path(0).exists()
    assert '"size": 2' in (second.folder / "parameters.json").read_text()


def test_a_view_is_stored_without_what_it_looks_at(tmp_path):
    cache = open_cache(tmp_path, lambda index: {"x": torch.zeros(1_000_000)[:10]})
    cache[0]
    assert cache.path(0).stat().st_size < 10_000


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    start = content.index(
        torch.rand(200, generator=torch.Generator().manual_seed(1)).numpy().tobytes()
    )
    content[start + 400] ^= 16
    path.write_bytes(content)


def write_text(path):
    path.write_text("not a sample")


def write_a_class(path):
    torch.save({"x": subprocess.Popen}, path)


def write_other_tensors(path):
    torch.save({"x": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "it cannot be read"),
        (empty, "it cannot be read"),
        (flip_a_bit, "checksum of .* is wrong|Bad CRC"),
        (write_text, "it cannot be read"),
        (write_a_class, "it cannot be read: UnpicklingError"),
        (write_other_tensors, "it is not a file of this cache"),
    ],
)
def test_a_damaged_file_is_reported_and_made_again(tmp_path, spoil, reason):
    make = Maker()
    cache = open_cache(tmp_path, make)
    cache.fill(3, progress=False)
    spoil(cache.path(1))
    with pytest.warns(UserWarning, match=f"000001.pt is not used and computed again: {reason}"):
        sample = cache[1]
    assert torch.equal(sample["x"], Maker()(1)["x"])
    assert make.made == [0, 1, 2, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cache[1]["x"], Maker()(1)["x"])


@pytest.mark.parametrize("spoil", [truncate, empty, write_text, write_a_class, write_other_tensors])
def test_filling_finds_broken_files(tmp_path, spoil):
    make = Maker()
    cache = open_cache(tmp_path, make)
    cache.fill(3, progress=False)
    spoil(cache.path(1))
    with pytest.warns(UserWarning, match="000001.pt is not used"):
        cache.fill(3, progress=False)
    assert make.made == [0, 1, 2, 1]


def test_a_file_of_another_number_is_not_read(tmp_path):
    cache = open_cache(tmp_path)
    cache.fill(2, progress=False)
    cache.path(0).replace(cache.path(1))
    with pytest.warns(UserWarning, match="it holds sample 0, not 1"):
        assert cache[1]["y"] == 1


def test_a_file_of_other_parameters_is_not_read(tmp_path):
    small, large = open_cache(tmp_path, size=1), open_cache(tmp_path, size=2)
    small.fill(1, progress=False)
    large.fill(1, progress=False)
    small.path(0).replace(large.path(0))
    with pytest.warns(UserWarning, match="made with other parameters: {'size': 1}"):
        large[0]


def test_samples_of_other_versions_are_reported(tmp_path, monkeypatch):
    cache = open_cache(tmp_path, packages=("torch", "no-such-package"))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.0.1")
        cache.fill(2, progress=False)
    with pytest.warns(UserWarning, match=r"2 of 3 samples .* made by {'torch': '0.0.1'"):
        cache.fill(3, progress=False)


@POSIX
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with files_up_to(2), pytest.raises(OSError, match=rf"File too large: '{path}'$"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_cache_on_a_full_disk_keeps_its_samples_and_goes_on(tmp_path):
    with small_disk(tmp_path, 2**18) as disk:
        make = Maker()
        cache = open_cache(disk, make)
        with pytest.raises(OSError, match=r"No space left on device: '.*/\d{6}.pt'$"):
            cache.fill(100, progress=False)
        done = len(list(cache.folder.glob("*.pt")))
        assert done == len(make.made) - 1 > 0
        assert not list(cache.folder.glob(".tmp*"))
        cache.fill(done, progress=False)
        assert len(make.made) == done + 1


def test_leftovers_of_killed_runs_are_removed_once_old(tmp_path):
    cache = open_cache(tmp_path)
    cache.fill(1, progress=False)
    old, young = cache.folder / ".tmp.1.000005.pt", cache.folder / ".tmp.2.000006.pt"
    for path in (old, young):
        path.write_bytes(b"half a sam")
    os.utime(old, (0, 0))
    cache.fill(1, progress=False)
    assert not old.exists()
    assert young.exists()


KILLED_RUN = """
import sys, torch
from neurenix_ms.datasets.cache import SampleCache

def make(index):
    return {"x": torch.rand(500_000, generator=torch.Generator().manual_seed(index))}

SampleCache(sys.argv[1], "killed", {}, make).fill(100_000, progress=False)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_broken_sample_and_is_resumed(tmp_path):
    made = []

    def make(index):
        made.append(index)
        return {"x": torch.rand(500_000, generator=torch.Generator().manual_seed(index))}

    cache = SampleCache(tmp_path, "killed", {}, make)
    for goal in (3, 8, 13):
        run = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path)])
        deadline = time.monotonic() + 60
        while not cache.path(goal).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.wait()
    num_kept = len(list(cache.folder.glob("*.pt")))
    assert num_kept > 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.fill(num_kept + 2, progress=False)
        samples = [cache[index]["x"] for index in range(num_kept + 2)]
    assert made == [num_kept, num_kept + 1]
    for index, sample in enumerate(samples):
        assert torch.equal(sample, make(index)["x"])
