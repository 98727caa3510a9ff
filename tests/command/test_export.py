"""`neurenix-ms export` and `demo`: programs equal to the network, or nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurenix_ms as nms
from neurenix_ms.command import _exporting, demo, main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = nms.UNet(1, 2, [4], block="single")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    nms.save(model, "model.nx")
    return tmp_path


def test_a_program_takes_any_batch_and_size(capsys):
    assert main(["export", "model.nx", "--pt2", "out.pt2", "--size", "16x20"]) == 0
    assert capsys.readouterr().out.startswith("out.pt2: for any batch and size; differs from the")
    program = torch.export.load("out.pt2").module()
    x = torch.rand(3, 1, 23, 18)
    torch.testing.assert_close(program(x), nms.load("model.nx").eval()(x))


def test_a_program_of_one_size(capsys):
    pytest.importorskip("safetensors")
    nms.load("model.nx").save_pretrained("mine")
    assert main(["export", "mine", "--pt2", "out.pt2", "--size", "16,20", "--fixed"]) == 0
    assert "out.pt2: for inputs of 1x1x16x20 only; differs" in capsys.readouterr().out


@pytest.mark.slow
def test_onnx_takes_any_batch_and_size(capsys):
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", "model.nx", "--onnx", "out.onnx", "--size", "16x20"]) == 0
    assert "for any batch and size" in capsys.readouterr().out
    x = torch.rand(3, 1, 23, 18)
    (y,) = runtime.InferenceSession("out.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(y), nms.load("model.nx").eval()(x), atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_onnx_that_cannot_be_run_is_not_written(capsys):
    pytest.importorskip("onnxruntime")
    nms.save(nms.load("model.nx").double(), "double.nx")
    assert main(["export", "double.nx", "--onnx", "out.onnx", "--size", "16x20"]) == 1
    assert "onnxruntime must run the program, got [ONNXRuntimeError]" in capsys.readouterr().err
    assert not Path("out.onnx").exists()


class Fixed(nn.Module):
    """A network of one size."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(16, 16)


def test_sizes_are_fixed_where_torch_cannot_open_them(tmp_path: Path):
    words = _exporting.exported(Fixed().eval(), "a.pt2", "pt2", (1, 1, 16, 16), False, 1e-4)
    assert words.startswith("a.pt2: for inputs of 1x1x16x16 only; differs from the network by 0")


@pytest.mark.slow
def test_a_program_that_differs_is_not_written(monkeypatch, capsys):
    real = _exporting.as_pt2

    def wrong(*args):
        run = real(*args)
        return lambda x: [1.01 * y for y in run(x)]

    monkeypatch.setattr(_exporting, "as_pt2", wrong)
    assert main(["export", "model.nx", "--pt2", "out.pt2", "--size", "16x20"]) == 1
    assert "must be equal to the network up to 0.0001, got 1.0e-02" in capsys.readouterr().err
    monkeypatch.setattr(_exporting, "as_pt2", lambda *args: real(*args) and (lambda x: [x]))
    assert main(["export", "model.nx", "--pt2", "out.pt2", "--size", "16x20"]) == 1
    assert "must return shape (1, 2, 16, 20), got (1, 1, 16, 20)" in capsys.readouterr().err
    assert not Path("out.pt2").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "export none.nx --pt2 out --size 8x8",
            "FILE must be a file or folder that exists, got none",
        ),
        ("export blur.nx --pt2 out --size 8x8", "--channels must be given for a BlurPool"),
        (
            "export model.nx --pt2 out --size 1x8",
            "must be at least 2 to be halved 1 times, got (1, 8)",
        ),
        ("export model.nx --pt2 out --size 8x8x8", "expected (B, C) and 2 spatial axes"),
        (
            "export stepper.nx --pt2 out --size 8 --channels 2",
            "export needs a network of one tensor, here of shape (1, 2, 8), got a Hierarchical",
        ),
        (
            "export model.nx --pt2 out --size 8x8 --tolerance 0",
            "--tolerance must be above 0, got 0",
        ),
        ("demo --size 4 --samples 4", None),
    ],
)
def test_a_mistake_is_named_and_nothing_written(words: str, message: str | None, capsys):
    nms.save(nms.BlurPool(), "blur.nx")
    nms.save(nms.create("hits"), "stepper.nx")
    before = set(Path().iterdir())
    if message is None:
        pytest.importorskip("porespy")
        with pytest.raises(SystemExit):
            main(words.split())
        assert "--size must be at least 16, got 4" in capsys.readouterr().err
    else:
        assert main(words.split()) == 1
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert set(Path().iterdir()) == before


def test_one_kind_of_program_is_asked_for(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "model.nx", "--size", "8x8"])
    assert ended.value.code == 2
    assert "one of the arguments --onnx --pt2 is required" in capsys.readouterr().err


def test_the_demo_gets_its_options(monkeypatch):
    command = pytest.importorskip("neurenix_ms.recipes.demo.command")
    own = {name: default for name, (default, *_) in (demo.COUNTS | demo.PATHS).items()}
    theirs = vars(command._options([])[0])
    assert {name: str(theirs[name]) for name in own} == {k: str(v) for k, v in own.items()}
    got = []
    monkeypatch.setattr(command, "main", got.append)
    assert main(["demo", "--samples", "8", "--out", "there", "--fresh"]) == 0
    assert {"--samples=8", "--epochs=12", "--out=there", "--data=data", "--fresh"} <= set(got[0])
    np.zeros((200, 90), "uint8").tofile("rock.raw")
    read = ["--data", "rock.raw", "--shape", "200,90", "--dtype", "uint8"]
    assert main(["demo", *read, "--pore-values", "0", "3"]) == 0
    options, scan, _ = command._options(got[1])
    assert (options.pore_values, scan.shape) == ([0, 3], (200, 90))
