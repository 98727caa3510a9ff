"""`neurenix-ms info` and `list`: what is in files and in the registry."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import neurenix_ms as nms
from neurenix_ms.command import _contents, main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def info(*words: str, capsys: pytest.CaptureFixture) -> dict[str, str]:
    assert main(["info", *words]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    return dict(line.strip().split(maxsplit=1) for line in lines)


class Calling:
    """A pickle of it asks for a call."""

    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_network_is_described(capsys):
    model = nms.UNet(1, 2, [4, 8], act="gelu")
    nms.save(model, "model.nx")
    rows = info("model.nx", capsys=capsys)
    assert rows["class"] == "UNet"
    assert (rows["features"], rows["act"]) == ("[4, 8]", "'gelu'")
    assert "norm" not in rows  # the default
    count = sum(v.numel() for v in model.state_dict().values() if v.is_floating_point())
    assert rows["numbers"].startswith(f"{count:,} float32, 10 int64")
    assert main(["info", "model.nx", "--input", "1x1x64x48", "--train"]) == 0
    assert "memory of a training step at 1x1x64x48  " in capsys.readouterr().out


def test_a_long_argument_is_cut(capsys):
    nms.save(nms.create("hits"), "model.nx")
    steppers = info("model.nx", capsys=capsys)["steppers"]
    assert steppers.startswith("[{'class': 'TimeStepper'")
    assert len(steppers) == 100


def test_a_network_that_needs_code_is_described(capsys):
    nms.save(nn.Linear(2, 3), "model.nx")
    assert "load(path, model=...) needs" in info("model.nx", capsys=capsys)["arguments"]


def test_a_shared_folder_and_its_weights_are_described(capsys):
    pytest.importorskip("safetensors")
    nms.create("unet", features=[4]).save_pretrained("mine")
    rows = info("mine", capsys=capsys)
    assert (rows["kind"], rows["preset"]) == ("folder of save_pretrained", "unet")
    assert info("mine/model.safetensors", capsys=capsys)["tensors"] == rows["tensors"]
    assert main(["info", "mine", "--input", "1x3x64x64"]) == 0
    assert "memory of a forward pass" in capsys.readouterr().out


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_are_judged_without_being_run(is_zip: bool, capsys):
    format = {"_use_new_zipfile_serialization": is_zip}
    torch.save(nn.Linear(2, 3).state_dict(), "state.pt", **format)
    torch.save(nn.Linear(2, 3), "module.pth", **format)
    torch.save({"a": Calling(), "b": torch.zeros(2)}, "calling.pt", **format)
    rows = info("state.pt", capsys=capsys)
    assert rows["safe"].startswith("to load  yes, by torch.load(weights_only=True)")
    assert rows["numbers"] == "9 float32"
    rows = info("module.pth", capsys=capsys)
    assert "by neurenix_ms.weights.read_pickle" in rows["safe"]
    assert "would import" in rows["safe"]
    assert "torch.nn.modules.linear.Linear" in rows["safe"]
    rows = info("calling.pt", capsys=capsys)
    assert rows["safe"].startswith("to load  no: it requests a call of ")
    assert not Path("made").exists()


def test_a_checkpoint_is_described(capsys):
    torch.save({"epoch": 3, "nested": {"w": torch.zeros(2)}}, "last.ckpt")
    assert "none that can be read alone" in info("last.ckpt", capsys=capsys)["weights"]


def test_arrays_are_described(capsys):
    np.save("a.npy", np.zeros((3, 4)))
    rows = info("a.npy", capsys=capsys)
    assert (rows["shape"], rows["dtype"], rows["size"]) == ("3x4", "float64", "96 B")
    np.zeros(12, "<u2").tofile("b.raw")
    rows = info("b.raw", "--shape", "3,4", "--dtype", "<u2", capsys=capsys)
    assert (rows["kind"], rows["size"]) == ("array", "24 B")


def write_several() -> None:
    """Files of several arrays."""
    zarr, h5py = pytest.importorskip("zarr"), pytest.importorskip("h5py")
    xarray, tifffile = pytest.importorskip("xarray"), pytest.importorskip("tifffile")
    np.savez("a.npz", scan=np.zeros((3, 4)), other=np.zeros(5, "u2"), name=np.array(["a"]))
    group = zarr.open_group("a.zarr", mode="w")
    group.create_array("deep/scan", shape=(8, 4), dtype="f8", chunks=(4, 4))[:4] = 1
    group.create_array("other", data=np.ones(3))
    with h5py.File("a.h5", "w") as file:
        file["deep/scan"], file["other"], file["text"] = np.zeros((3, 4)), np.zeros(5), "text"
        file["deep/scan"].attrs["units"] = "HU"
    field = ("lat", "lon"), np.zeros((3, 4)), {"units": "HU"}
    data = xarray.Dataset({"scan": field, "other": ("lat", np.zeros(3))})
    data.to_netcdf("a.nc", engine="h5netcdf")
    with tifffile.TiffWriter("a.tif") as tiff:
        tiff.write(np.zeros((64, 32), "u1"), subifds=1, tile=(16, 16))
        tiff.write(np.zeros((32, 16), "u1"), subfiletype=1, tile=(16, 16))


@pytest.mark.parametrize(
    ("name", "key", "rows"),
    [
        ("a.npz", "scan", ["scan 3x4, float64, 96 B", "other 5, uint16, 10 B"]),
        ("a.zarr", "deep/scan", ["deep/scan 8x4, float64, 256 B", "other 3, float64, 24 B"]),
        ("a.h5", "deep/scan", ["deep/scan 3x4, float64, 96 B, HU", "other 5, float64, 40 B"]),
        ("a.nc", "scan", ["scan 3x4, float64, 96 B, HU", "other 3, float64, 24 B"]),
        ("a.tif", "1", ["0 64x32, uint8, 2 KiB", "1 32x16, uint8, 512 B"]),
    ],
)
def test_the_arrays_of_a_file_are_listed(name: str, key: str, rows: list[str], capsys):
    write_several()
    assert main(["info", name]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "arrays; --key shows one" in lines[0]
    assert set(rows) <= set(lines)
    assert main(["info", name, "--key", key]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"shape {next(row for row in rows if row.startswith(key)).split()[1][:-1]} " in shown
    assert ("chunks 1 are not in the file, and are read as its fill value" in shown) == (
        name == "a.zarr"
    )
    assert main(["info", name, "--key", "none"]) == 1
    assert "key must be" in capsys.readouterr().err


def test_arrays_without_numbers_and_long_lists_are_shown(capsys, monkeypatch):
    write_several()
    assert main(["info", "a.npz"]) == 0
    assert "a.npz must hold numbers or booleans, got type <U1" in capsys.readouterr().out
    monkeypatch.setattr(_contents, "MOST_KEYS", 1)
    assert main(["info", "a.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip() == "and 2 more"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.nx"], "FILE must be a file or folder that exists, got missing.nx"),
        (["a.npy", "--input", "1x1x8x8"], "must be a file of neurenix_ms.save"),
        (["a.npy", "--shape", "2,3"], "are for raw binary files"),
        (["a.safetensors"], "must be a safetensors file"),
        (["a.txt"], "a.txt"),
        (["other.pt"], "cannot read other.pt: torch.save did not write it"),
        (["script.pt"], "it is a TorchScript program, not a pickled module"),
        (["."], "or be a folder of these, got ."),
        (["half.npz"], "half.npz must be a complete npz file, got an error of its reader"),
        (["half.h5"], "half.h5 must be a complete hdf5 file, got an error of its reader"),
        (["a.npy", "--key", "x"], "key must be None for a.npy, which holds one array"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys):
    np.save("a.npy", np.zeros((3, 4)))
    Path("a.safetensors").write_text("no")
    Path("a.txt").write_text("no")
    Path("half.npz").write_bytes(b"PK\3\4")
    Path("half.h5").write_bytes(b"\x89HDF")
    Path("other.pt").write_text("no")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), "script.pt")
    assert main(["info", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("neurenix-ms info: ")
    assert message in said
    assert said.count("\n") == 1
    assert main(["info", *words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_shape_is_lengths(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["info", "a.npy", "--input", "1x0"])
    assert ended.value.code == 2
    assert "must be lengths such as 64x48, got '1x0'" in capsys.readouterr().err


def test_networks_are_listed(capsys):
    assert main(["list", "unet_milesial"]) == 0
    shown = capsys.readouterr().out
    assert "unet_milesial  UNet, 31,037,698 parameters\n    the widely used PyTorch U-Net" in shown
    assert "    source: milesial/Pytorch-UNet, UNet(3, 2)\n" in shown
    assert main(["list", "--names"]) == 0
    assert capsys.readouterr().out.split() == nms.list_models()
    assert main(["list", "transformer*"]) == 1
    assert "PATTERN must fit a name, got 'transformer*'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_network_is_counted(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if re.fullmatch(r"\w+  \w+, [\d,]+ parameters", line)]
    assert [line.split()[0] for line in heads] == nms.list_models()
