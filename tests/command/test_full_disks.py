"""What the command line does on a disk that is full: one line, nothing broken, and it resumes."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import fill, small_disk

import neurenix_ms as nms
from neurenix_ms.command import main
from neurenix_ms.datasets import create_array, open_array
from neurenix_ms.timestepping import TimeStepper

FULL = "No space left on device"
RAW: Any = {"shape": (400, 300), "dtype": "float32"}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with small_disk(tmp_path, 2**22):
        yield Path("disk")


def said_of(words: str, capsys: pytest.CaptureFixture) -> str:
    """Return the message of a command that fails, without its progress bar."""
    assert main(words.split()) == 1
    *progress, said = capsys.readouterr().err.rstrip("\n").split("\n")
    assert all("tile/s" in line or not line for line in progress)
    return said.rpartition("\r")[2]


@pytest.mark.parametrize("ending", ["npy", "raw", "zarr", "h5", "nc", "tif"])
def test_a_prediction_waits_for_space(ending: str, disk: Path, capsys: pytest.CaptureFixture):
    image = np.random.default_rng(0).random((400, 300), dtype="float32")
    np.save("image.npy", image)
    torch.manual_seed(0)
    nms.save(nms.UNet(1, 1, [4], norm=None), "model.nx")
    words = f"predict model.nx image.npy disk/out.{ending} --tile 200"
    filler = fill(disk, 100_000)
    line = f"neurenix-ms predict: [Errno 28] {FULL}: 'disk/out.{ending}'"
    assert said_of(words, capsys) == line
    assert [path.name for path in disk.iterdir()] == ["filler"]
    filler.unlink()
    if ending in ("npy", "raw"):
        assert main(words.split()) == 0
    else:
        filler = fill(disk, 600_000)  # of the tiles, not of the other format
        assert said_of(words, capsys) == line
        assert {path.name for path in disk.iterdir()} == {"filler", f".out.{ending}.part"}
        filler.unlink()
        assert main(words.split()) == 0
        assert "4 tiles, 4 of them by an earlier run" in capsys.readouterr().out
    assert [path.name for path in disk.iterdir()] == [f"out.{ending}"]
    assert main(["predict", "model.nx", "image.npy", "once.npy", "--tile", "200"]) == 0
    found = open_array(f"disk/out.{ending}", **RAW if ending == "raw" else {})
    assert np.array_equal(np.ravel(found[...]), np.ravel(np.load("once.npy")))
    assert len(np.unique(np.load("once.npy"))) > 1000


@pytest.mark.parametrize("ending", ["npy", "zarr", "h5", "nc", "tif"])
def test_a_forecast_is_whole_or_not_there(ending: str, disk: Path, capsys: pytest.CaptureFixture):
    nms.save(TimeStepper(nms.layers.MLP(2, 2, [8]), 1), "stepper.nx")
    np.save("states.npy", np.random.default_rng(0).random((50, 2), dtype="float32"))
    words = f"predict stepper.nx states.npy disk/out.{ending} --steps 400"
    for left in (0, 8192):
        filler = fill(disk, left)
        line = f"neurenix-ms predict: [Errno 28] {FULL}: 'disk/out.{ending}'"
        assert said_of(words, capsys) == line
        assert [path.name for path in disk.iterdir()] == ["filler"]
        filler.unlink()
    assert main(words.split()) == 0
    assert open_array(f"disk/out.{ending}").shape == (50, 400, 2)


def test_a_model_is_whole_or_not_there(disk: Path):
    model = nms.UNet(1, 1, [8, 16])
    nms.save(model, "model.nx")
    size = Path("model.nx").stat().st_size
    for left in range(0, size, 8192):
        filler = fill(disk, left)
        with pytest.raises(OSError, match=rf"{FULL}: 'disk/model.nx'$"):
            nms.save(model, "disk/model.nx")
        assert [path.name for path in disk.iterdir()] == ["filler"]
    filler.unlink()
    nms.save(model, "disk/model.nx")
    assert nms.load("disk/model.nx").features == [8, 16]


@pytest.mark.parametrize("temporary", [False, True], ids=["place", "temporary folder"])
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_program_is_whole_or_not_there(
    kind: str, temporary: bool, disk: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    nms.save(nms.UNet(1, 1, [4]), "model.nx")
    if temporary:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
    words = f"export model.nx --{kind} {'' if temporary else 'disk/'}out.{kind} --size 8x8 --fixed"
    fill(disk, 4096)
    place = disk if temporary else f"disk/out.{kind}"
    assert said_of(words, capsys) == f"neurenix-ms export: [Errno 28] {FULL}: '{place}'"
    assert [path.name for path in disk.iterdir()] == ["filler"]
    assert not Path(f"out.{kind}").exists()


@pytest.mark.parametrize("ending", ["npy", "raw", "h5", "nc", "tif"])
def test_an_array_without_space_is_not_made(ending: str, disk: Path):
    path = disk / f"a.{ending}"
    small = create_array(path, (2, 2))
    getattr(small, "close", small.flush)()
    before = path.read_bytes()
    filler = fill(disk, 100_000)
    for options in ({}, {"overwrite": True}):
        name = path if options else disk / f"b.{ending}"
        with pytest.raises(OSError, match=rf"{FULL}: '{name}'$"):
            create_array(name, (400, 300), **options)
    assert path.read_bytes() == before
    assert {one.name for one in disk.iterdir()} == {path.name, "filler"}
    filler.unlink()
    array = create_array(path, (400, 300), overwrite=True)
    if ending not in ("h5", "nc"):
        fill(disk, 0)
    array[:] = 1  # its space is reserved
    getattr(array, "close", array.flush)()
    assert float(np.sum(open_array(path, **RAW if ending == "raw" else {}))) == 120_000
