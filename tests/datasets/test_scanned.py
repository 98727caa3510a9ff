"""Boxes of a scan with solved conduction."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.datasets import (
    ScannedConduction,
    effective_conductivity,
    open_array,
    porous,
    scanned,
)

pytest.importorskip("porespy")


@pytest.fixture
def scan() -> np.ndarray:
    """Channels along the first axis, in voxels with the label 7 or 9."""
    labels = np.full((20, 12, 12), 2, "uint8")
    labels[:, ::2, :] = 7
    labels[:, 0, :] = 9
    return labels


def make(root: Path, scan: object, count: int = 2, size: object = 8, **options: object):
    given = {"pore_values": [7, 9], "progress": False, **options}
    return ScannedConduction(root, scan, count, size, **given)


def test_channels_conduct_as_their_area(tmp_path: Path, scan: np.ndarray):
    data = make(tmp_path, scan)
    assert len(data) == 2
    for sample in (data[0], data[1]):
        assert sample["pores"].shape == (1, 8, 8, 8)
        assert sample["D_rel"].item() == pytest.approx(0.5, abs=1e-4)
        found = effective_conductivity(sample["potential"][None], sample["pores"][None])
        torch.testing.assert_close(found[0], sample["D_rel"], rtol=1e-4, atol=0)
        assert sample["distance"].max() == 1


def test_samples_are_cached_by_scan_and_arguments(tmp_path: Path, scan: np.ndarray, monkeypatch):
    made = make(tmp_path, scan)
    first = made[1]
    np.save(tmp_path / "scan.npy", scan)
    solve = porous.solved
    monkeypatch.setattr(porous, "solved", lambda *_: pytest.fail("computed again"))
    again = make(tmp_path, open_array(tmp_path / "scan.npy"))[1]
    assert all(torch.equal(first[key], again[key]) for key in first)
    monkeypatch.setattr(porous, "solved", solve)
    scan[0, 0, 0] = 2
    folders = {made.cache.folder, make(tmp_path, scan).cache.folder}
    folders.add(make(tmp_path, scan, seed=1).cache.folder)
    assert len(folders) == 3


def test_boxes_that_do_not_converge_are_replaced(tmp_path: Path, scan: np.ndarray, monkeypatch):
    solve, calls = porous.solved, itertools.count()
    monkeypatch.setattr(porous, "solved", lambda *given: solve(*given) if next(calls) else None)
    with pytest.warns(
        UserWarning, match=r"draw 0 of sample 0 is omitted: taufactor did not conver"
    ):
        make(tmp_path, scan, 1)


def test_a_scan_without_a_path_is_an_error(tmp_path: Path, scan: np.ndarray, monkeypatch):
    for module in (porous, scanned):
        monkeypatch.setattr(module, "MAX_DRAWS", 3)
    with pytest.raises(
        RuntimeError, match=r"none of 3 boxes of \[8, 8, 8\] voxels conducts .*\[1\]"
    ):
        make(tmp_path, scan, pore_values=[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scan": np.zeros(9)}, r"scan must be an array of two or three axes, got \(9,\)"),
        ({"scan": 3}, r"scan must be an array of two or three axes, got \(\)"),
        ({"size": 13}, r"scan must be at least \(13, 13, 13\) long, got \(20, 12, 12\)"),
        ({"size": 3}, r"size\[0\] must be at least 4, got 3"),
        ({"size": [8, 8]}, r"size must"),
        ({"count": 0}, r"num_samples must be at least 1, got 0"),
        ({"pore_values": []}, r"pore_values must"),
        ({"tolerance": 1.0}, r"tolerance must be below 1"),
        ({"max_iterations": 9}, r"max_iterations must be at least 200, got 9"),
    ],
)
def test_a_wrong_argument_is_named(options: dict, words: str, tmp_path: Path, scan: np.ndarray):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **{"scan": scan, **options})


def test_there_are_no_others(tmp_path: Path, scan: np.ndarray):
    with pytest.raises(IndexError, match="index must be below 1, got 1"):
        make(tmp_path, scan, 1)[1]
