"""`neurenix-ms fit`: options, messages and exit status."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from disks import POSIX, files_up_to, read_only

from neurenix_ms.command import fit, main

SMALL = ["--data.size=8", "--data.num_samples=8", "--model.arguments.features=[4]"]
SMALL += ["--trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).random((48, 40), dtype="float32")
    np.save("images.npy", image)
    np.save("labels.npy", (image > 0.5).astype("uint8"))
    return tmp_path


def test_a_network_is_trained_and_described(capsys: pytest.CaptureFixture):
    assert main(["fit", "segment_images", *SMALL, "--threads", "1", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("runs/segment_images/model: 1 epochs; train_iou ")
    assert said.err == ""
    model = "runs/segment_images/model"
    assert main(["info", model]) == 0
    assert "preset                 unet" in capsys.readouterr().out
    assert main(["fit", "segment_images", *SMALL]) == 0
    assert "1 epochs, some of them by an earlier run; train_iou" in capsys.readouterr().out


@pytest.mark.slow
def test_the_other_subcommands_take_the_network():
    assert main(["fit", "segment_images", *SMALL, "--quiet"]) == 0
    model = "runs/segment_images/model"
    assert main(["predict", model, "images.npy", "out.npy", "--reduce", "argmax", "--quiet"]) == 0
    assert np.load("out.npy").shape == (1, 48, 40)
    assert main(["export", model, "--pt2", "model.pt2", "--size", "16x16"]) == 0


@pytest.mark.slow
def test_a_process_shows_progress_and_ends_with_its_status():
    run = [sys.executable, "-m", "neurenix_ms.command", "fit"]
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([*run, "segment_images", *SMALL], **options)
    assert done.returncode == 0, done.stderr
    assert "Epoch 0: 100%" in done.stderr
    assert "Warning" not in done.stderr
    assert "Seed" not in done.stderr


def test_a_config_is_copied_and_shown(capsys: pytest.CaptureFixture):
    assert main(["fit", "segment_images", "--copy", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    assert Path("mine.yaml").read_text().startswith("# Segment 2-D images")
    assert main(["fit", "mine.yaml", "--print_config", "--data.size=8"]) == 0
    shown = capsys.readouterr().out
    assert "class_path: neurenix_ms.fitting.Images" in shown
    assert "    size: 8\n" in shown
    Path("shown.yaml").write_text(shown)
    assert main(["fit", "shown.yaml", *SMALL, "--quiet"]) == 0
    assert main(["fit", "segment_images", "--copy", "mine.yaml"]) == 1
    assert "--copy must name a new file" in capsys.readouterr().err


def test_an_error_is_one_line(capsys: pytest.CaptureFixture):
    for words, message in {
        "none": "CONFIG must be a YAML file or one of ['",
        "segment_images --threads 0": "--threads must be at least 1, got 0",
        "segment_images --data.inputs=none.npy": "path must be a file or folder that exists",
        "segment_images --model.loss.class_path=os.system": "--trust allows others, whose code",
        "segment_images more": "what follows CONFIG must be options such as --data.size=64, got",
    }.items():
        assert main(["fit", *words.split()]) == 1
        said = capsys.readouterr().err
        assert said.startswith("neurenix-ms fit: ")
        assert message in said
        assert said.count("\n") == 1
    assert main(["fit", "none", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_option_that_no_other_subcommand_knows_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["list", "--data.size=3"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --data.size=3" in capsys.readouterr().err


def test_the_help_lists_the_ready_configs(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(path.stem in shown for path in fit.ready())
    assert len(fit.ready()) >= 4
    assert max(map(len, shown.splitlines())) <= 105


@POSIX
@pytest.mark.parametrize(
    ("size", "place"), [(64, ": 'runs/segment_images/config.yaml'"), (4096, "")]
)
def test_a_full_disk_is_one_line_and_the_run_resumes(
    size: int, place: str, capsys: pytest.CaptureFixture
):
    words = ["fit", "segment_images", *SMALL, "--quiet"]
    with files_up_to(size):
        assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("neurenix-ms fit: ")
    assert said.count("\n") == 1
    assert f"File too large{place}\n" in said
    left = [path.name for path in Path("runs").rglob("*") if path.is_file()]
    assert not [one for one in left if "tmp" in one or one == "model.safetensors"]
    assert main(words) == 0
    assert main(["info", "runs/segment_images/model"]) == 0


@POSIX
def test_a_disk_that_is_full_at_the_end_is_one_line_and_the_run_resumes(
    capsys: pytest.CaptureFixture,
):
    words = ["fit", "segment_images", *SMALL, "--quiet"]
    assert main(words) == 0
    capsys.readouterr()
    model = Path("runs/segment_images/model")
    size = (model / "model.safetensors").stat().st_size
    shutil.rmtree(model)  # as if the run had ended after its last checkpoint, which is larger
    with files_up_to(size - 1):
        assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("neurenix-ms fit: [Errno 27] File too large: '")
    assert said.endswith("runs/segment_images/model'\n")
    assert not list(Path("runs").rglob("model.safetensors"))
    assert not list(Path("runs").rglob("*tmp*"))
    assert main(words) == 0
    assert main(["info", str(model)]) == 0


@POSIX
def test_a_read_only_folder_is_one_line(capsys: pytest.CaptureFixture):
    with read_only(Path.cwd()):
        assert main(["fit", "segment_images", *SMALL, "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said == "neurenix-ms fit: [Errno 13] Permission denied: 'runs'\n"
    assert not Path("runs").exists()


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs tensorboard")
def test_scores_are_in_tensorboard():
    assert main(["fit", "segment_images", *SMALL, "--quiet"]) == 0
    assert list(Path("runs/segment_images/tensorboard").rglob("events.out.tfevents.*"))
