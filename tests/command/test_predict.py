"""`neurenix-ms predict`: options, messages and exit status."""

from pathlib import Path

import numpy as np
import pytest
import torch

import neurenix_ms as nms
from neurenix_ms.command import main, predict
from neurenix_ms.datasets import open_array


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    nms.save(nms.BlurPool(1), "model.nx")
    np.arange(60 * 44, dtype=">u2").tofile("scan.raw")
    return tmp_path


def test_options_reach_the_prediction(capsys: pytest.CaptureFixture):
    words = (
        "predict model.nx scan.raw out.npy --shape 60,44 --dtype >u2 --spatial-dims 2 --tile 16,20"
    )
    more = "--memory 1GB --out-dtype float64 --threads 1"
    assert main([*words.split(), *more.split()]) == 0
    said = capsys.readouterr()
    assert said.out == "out.npy: shape (1, 1, 30, 22), float64, 12 tiles\n"
    assert "12/12" in said.err
    scan = open_array("scan.raw", shape=(60, 44), dtype=">u2")
    whole = nms.load("model.nx")(torch.tensor(scan[...].astype("float32"))[None, None])
    np.testing.assert_allclose(np.load("out.npy"), whole.numpy())
    assert main([*words.split(), "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 60,44 --dtype u4", "scan.raw must have 10560 bytes"),
        ("--shape 60,44 --dtype u2 --threads 0", "--threads must be at least 1, got 0"),
        ("--shape 60,44 --dtype u2 --tile 8,8,8", "tile_size must be at least 1 along each of 2"),
        ("--shape 60,44 --dtype u2 --key a", "key must be None"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(words: str, message: str, capsys):
    options = ["predict", "model.nx", "scan.raw", "out.npy", "--spatial-dims", "2", *words.split()]
    before = set(Path().iterdir())
    if "--key" in words:
        np.save("scan.npy", np.zeros((60, 44)))
        before = set(Path().iterdir())
        options[2], options[-6:] = "scan.npy", ["--key", "a"]
    assert main(options) == 1
    said = capsys.readouterr().err
    assert said.startswith("neurenix-ms predict: ")
    assert message in said
    assert said.count("\n") == 1
    assert set(Path().iterdir()) == before
    assert main([*options, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_missing_model_and_an_error_of_torch_are_one_line(capsys, monkeypatch):
    assert main(["predict", "none.nx", "scan.raw", "out.npy"]) == 1
    assert "No such file or directory: 'none.nx'" in capsys.readouterr().err

    def fail(options: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(predict, "run", fail)
    assert main(["predict", "a", "b", "c"]) == 1
    assert capsys.readouterr().err == "neurenix-ms predict: first\n"


def test_an_interruption_has_its_own_status(capsys, monkeypatch):
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "run", interrupt)
    assert main(["predict", "a", "b", "c"]) == 130
    assert capsys.readouterr().err == "neurenix-ms predict: interrupted\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 3,x", "must be lengths such as 64x48, got '3,x'"),
        ("--memory 3XB", "must be a number of bytes such as 500MB or 4GB, got '3XB'"),
        ("--fill land", "must be a number or 'keep', got 'land'"),
    ],
)
def test_a_wrong_option_is_named(words: str, message: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "a", "b", "c", *words.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_sizes_have_units():
    texts = ["7", "500MB", "1.5GB", "2GiB", "3kb"]
    sizes = [7, 500_000_000, 1_500_000_000, 2**31, 3000]
    assert [predict.num_bytes(text) for text in texts] == sizes
    assert [predict.tile(text) for text in ("auto", "8", "8,4")] == ["auto", 8, [8, 4]]
    assert [predict.filling(text) for text in ("keep", "-1.5")] == ["keep", -1.5]
