"""`fit` from files to a folder of a network: every kind of data, resumption, messages."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms import from_pretrained
from neurenix_ms.datasets import open_array
from neurenix_ms.fitting import Images, Segmentation, Trajectories, running
from neurenix_ms.fitting.fields import RowBatches
from neurenix_ms.fitting.images import View
from neurenix_ms.fitting.loading import EpochOrder, FitData, num_held_out
from neurenix_ms.fitting.running import fit
from neurenix_ms.fitting.tasks import OverOutputs, WithFloats
from neurenix_ms.fitting.trajectories import Draws
from neurenix_ms.implicit import PointCloud

SMALL = ["--data.size=8", "--data.num_samples=8", "--model.arguments.features=[4]"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).random((48, 40), dtype="float32")
    np.save("images.npy", image)
    np.save("labels.npy", (image > 0.5).astype("uint8"))
    return tmp_path


def segment(*words: str, **options: object) -> running.Fitted:
    return fit("segment_images", [*SMALL, *words], progress=False, **options)


def weights(folder: str) -> bytes:
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


def test_a_threshold_is_learnt_and_the_best_weights_are_kept():
    made = segment("--trainer.max_epochs=8", "--data.num_samples=64", "--model.learning_rate=0.02")
    assert made.folder == Path("runs/segment_images/model")
    assert made.scores["val_iou"] > 0.8
    assert not made.resumed
    model = from_pretrained(made.folder).eval()
    image = torch.from_numpy(np.load("images.npy"))[None, None]
    with torch.no_grad():
        found = model(image).argmax(1)[0].numpy()
    assert (found == np.load("labels.npy")).mean() > 0.9
    best = torch.load("runs/segment_images/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, best[f"model.{name}"], rtol=0, atol=0)
    card = (made.folder / "README.md").read_text()
    assert "for 8 epochs. Scores of the last epoch: train_iou" in card
    assert "network: unet" in card
    logs = Path("runs/segment_images/logs/metrics.csv").read_text().splitlines()
    assert "val_iou" in logs[0]
    assert len(logs) >= 9


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_bytes(workers: int, monkeypatch):
    words = ["--trainer.max_epochs=3", "--model.arguments.dropout=0.3"]
    words += [f"--data.num_workers={workers}", "--data.num_samples=20", "--data.batch_size=4"]
    segment("--out=whole", *words)
    start = running.Epochs.on_train_epoch_start

    def fail(self, trainer, task):
        if trainer.current_epoch == 2:
            raise OSError("no space left")
        start(self, trainer, task)

    with monkeypatch.context() as patch:
        patch.setattr(running.Epochs, "on_train_epoch_start", fail)
        with pytest.raises(OSError, match="no space left"):
            segment("--out=parts", *words)
    assert not Path("parts/model").exists()
    torch.rand(7)  # another state of the global generator
    made = segment("--out=parts", *words)
    assert made.resumed
    assert weights("parts") == weights("whole")
    again = segment("--out=parts", *words)
    assert again.scores == made.scores
    assert weights("parts") == weights("whole")


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes():
    words = ["--trainer.max_epochs=4", "--data.num_samples=200", "--quiet"]
    run = [sys.executable, "-m", "neurenix_ms.command", "fit", "segment_images", *SMALL, *words]
    subprocess.run([*run, "--out=whole"], check=True, capture_output=True)
    process = subprocess.Popen([*run, "--out=parts"])
    last = Path("parts/checkpoints/last.ckpt")
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("parts/model").exists()
    done = subprocess.run([*run, "--out=parts"], check=True, capture_output=True, text=True)
    assert "4 epochs, some of them by an earlier run" in done.stdout
    assert weights("parts") == weights("whole")


def test_a_run_of_another_config_is_kept_unless_it_is_overwritten():
    segment("--out=r", "--trainer.max_epochs=1")
    before = weights("r")
    with pytest.raises(ValueError, match=r"max_epochs was 1, now 2; give another --out, or --over"):
        segment("--out=r", "--trainer.max_epochs=2")
    assert weights("r") == before
    assert segment("--out=r", "--trainer.max_epochs=2", overwrite=True).epochs == 2
    Path("r/config.yaml").write_text("[")
    with pytest.raises(
        ValueError, match=r"plain values, got .*; --overwrite starts from the begin"
    ):
        segment("--out=r", "--trainer.max_epochs=2")
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"out must be a new or empty folder, or that of a run, got"
    ):
        segment("--out=full")


def test_a_config_that_does_not_fit_leaves_nothing():
    before = set(Path().iterdir())
    for word, message in {
        "--model.network=unett": r"must be one of list_models\(\), got 'unett'; similar: 'unet'",
        "--model.arguments.featurs=[3]": r"got 'featurs'; similar: 'features'",
        "--model.learning_rate=abc": r"got: model.learning_rate abc: Expected a <class .float.>$",
        "--model.learning_rate=-1": r"learning_rate must be positive, got -1",
        "--model.optimizer=Adamm": r"optimizer must be one of",
        "--trainer.max_epoch=3": r"the config must fit its classes, got: Group 'trainer' does not",
        "--data.inputs=none.npy": r"path must be a file or folder that exists, got none.npy",
        "--data.inputs=none*.npy": r"inputs must be files that exist, got no file for 'none\*.npy'",
        "--data.inputs=[]": r"inputs must be one file or more, got none",
        "--data.key=a": r"key must be None",
        "--data.reading={fil: 0}": r"reading must hold some of \[.*\], got \['fil'\]",
        "--data.size=30": r"leave 30 rows, the edge of a crop, on both sides, got 38 and 10",
        "--data.validation=1": r"validation must be below 1, got 1",
        "--data.batch_size=0": r"batch_size must be at least 1, got 0",
        "--model.arguments.in_channels=3": r"inputs must have 3 channels as the network takes, got 1",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            segment(word, "--out=r")
        assert "\n" not in str(caught.value)
        assert set(Path().iterdir()) == before, word


def test_invalid_values_are_named_with_their_position():
    image = np.load("images.npy")
    image[:, 10:30] = np.nan
    np.save("images.npy", image)
    with pytest.raises(
        ValueError, match=r"must have a value everywhere, got \d+ missing values of"
    ):
        segment("--trainer.max_epochs=1")
    segment("--trainer.max_epochs=1", "--data.reading={fill: 0}", "--out=filled")
    np.save("labels.npy", np.full((48, 40), 7, "uint8"))
    with pytest.raises(
        ValueError, match=r"classes from 0 to 1 for a network of 2 output channels, g"
    ):
        segment("--data.reading={fill: 0}", "--out=r2")
    np.save("labels.npy", np.zeros((48, 41), "uint8"))
    with pytest.raises(
        ValueError, match=r"must have the spatial size \(48, 40\) of inputs, got \(48"
    ):
        segment("--out=r3")
    np.save("labels.npy", np.zeros((2, 48, 40), "uint8"))
    with pytest.raises(
        ValueError, match=r"targets of classes must have one channel, got 2 in label"
    ):
        segment("--out=r3")
    with pytest.raises(ValueError, match=r"targets must be 1 images as inputs are, got 2"):
        segment("--out=r3", "--data.targets=[labels.npy, labels.npy]")


@pytest.mark.slow
def test_an_error_of_a_reading_process_is_said_as_its_own(monkeypatch):
    monkeypatch.setattr(Segmentation, "prepare", lambda self, data: None)
    np.save("images.npy", np.full((48, 40), np.nan, "float32"))
    with pytest.raises(
        ValueError, match=r"^a data loader process must not fail, got ValueError: images.npy must"
    ):
        segment("--data.num_workers=1", "--trainer.num_sanity_val_steps=0", "--out=r")


def test_the_other_end_of_an_interruption(monkeypatch):
    def interrupt(self, trainer, task):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Epochs, "on_train_epoch_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment()


def test_several_images_values_and_one_channel():
    rng = np.random.default_rng(1)
    for i in range(3):
        x = rng.random((2, 20, 24), dtype="float32")
        np.save(f"x{i}.npy", x)
        np.save(f"y{i}.npy", x.sum(0, keepdims=True))
    words = ["--model.class_path=Regression", "--model.arguments.in_channels=2"]
    words += ["--model.arguments.out_channels=1", "--data.inputs=x*.npy", "--data.targets=y*.npy"]
    words += ["--data.classes=false", "--trainer.max_epochs=1", "--out=r"]
    assert segment(*words).scores.keys() == {"train_loss", "val_loss", "train_mae", "val_mae"}
    with pytest.raises(
        ValueError, match=r"targets must have 2 channels as the network returns, got"
    ):
        segment(*words, "--model.arguments.out_channels=2", overwrite=True)
    labels = ["--model.arguments.out_channels=1", "--trainer.max_epochs=1", "--out=one"]
    assert segment(*labels).scores["val_iou"] >= 0
    deep = ["--model.arguments.deep_supervision=true", "--model.arguments.features=[4, 4]"]
    assert segment(*deep, "--trainer.max_epochs=1", "--out=deep").scores["val_iou"] >= 0


def test_held_out_images_are_others_and_depend_on_the_seed_alone():
    data = Images("images.npy", "labels.npy", size=8, num_samples=20, validation=0.25)
    seen, held_out = data.sets
    image = np.load("images.npy")
    assert (len(seen), len(held_out)) == (20, 5)
    rows = [view.shape for view in (*seen.inputs, *held_out.inputs)]
    assert rows == [(1, 36, 40), (1, 12, 40)]
    crop, label = held_out[0]
    windows = np.lib.stride_tricks.sliding_window_view(image[36:], (8, 8))
    assert (windows == crop[0].numpy()).all((2, 3)).any()
    assert label.dtype == torch.long
    order = EpochOrder(seen, 0)
    first = list(order)
    assert sorted(first) == list(range(20))
    order.set_epoch(1)
    assert list(order) != first
    assert seen.epoch == 1
    none = Images("images.npy", "labels.npy", size=8, validation=0.0)
    assert none.sets[1] is None
    assert none.val_dataloader() == []
    assert [num_held_out(n, 0.2) for n in (2, 10, 3)] == [1, 2, 1]
    with pytest.raises(NotImplementedError):
        FitData(1, 0, 0.1, 0).build()


def test_a_view_is_a_part_of_an_image():
    np.save("many.npy", np.arange(3 * 5 * 4).reshape(3, 5, 4))
    images = open_array("many.npy").images(2, first="batch")
    view = View(images, 1, 2, 5)
    assert view.shape == (1, 3, 4)
    np.testing.assert_array_equal(view[:, 0:2, 1:3], np.load("many.npy")[1:2, 2:4, 1:3])
    classes = View(images, 1, 2, 5, with_channels=False)
    assert classes.shape == (3, 4)
    assert classes[1, 2] == np.load("many.npy")[1, 3, 2]


def test_losses_over_one_output_and_several():
    x, y = torch.tensor([[[2.0, -2.0]]]), torch.tensor([[1, 0]])
    wanted = torch.nn.functional.softplus(torch.tensor(-2.0))
    torch.testing.assert_close(OverOutputs(WithFloats())(x, y), wanted)
    torch.testing.assert_close(OverOutputs(WithFloats())([x, x], y), wanted)


@pytest.mark.slow
def test_a_hierarchy_forecasts_circles_and_resumes(monkeypatch):
    t = np.arange(260) * 0.1
    angles = np.random.default_rng(0).random(6)[:, None] * 6 + t
    np.save("states.npy", np.stack([np.cos(angles), np.sin(angles)], -1))
    words = ["--model.step_sizes=[1, 8]", "--model.arguments.hidden=[32]", "--data.num_batches=30"]
    words += ["--data.batch_size=64", "--trainer.max_epochs=6", "--model.learning_rate=0.01"]
    made = fit("trajectories", [*words, "--out=whole"], progress=False)
    model = from_pretrained(made.folder)
    truth = torch.from_numpy(np.load("states.npy")[-1:]).float()
    with torch.no_grad():
        error = (model.forecast(truth[:, 0], 60) - truth[:, 1:61]).square().mean()
    assert error < 0.05
    assert made.lines[0] == f"strides that are kept: {model.step_sizes}"
    assert "held-out trajectories, by strides: [8, 1]: " in made.lines[1]
    start = running.Epochs.on_train_epoch_start

    def fail(self, trainer, task):
        if trainer.current_epoch == 3:
            raise OSError("no space left")
        start(self, trainer, task)

    with monkeypatch.context() as patch:
        patch.setattr(running.Epochs, "on_train_epoch_start", fail)
        with pytest.raises(OSError, match="no space left"):
            fit("trajectories", [*words, "--out=parts"], progress=False)
    assert fit("trajectories", [*words, "--out=parts"], progress=False).resumed
    assert weights("parts") == weights("whole")


def test_a_short_hierarchy_is_written():
    np.save("states.npy", np.random.default_rng(0).random((3, 40, 2)))
    words = ["--model.step_sizes=[1, 4]", "--model.arguments.hidden=[4]", "--data.num_batches=2"]
    made = fit("trajectories", [*words, "--trainer.max_epochs=1", "--out=r"], progress=False)
    assert made.lines[0] == f"strides that are kept: {from_pretrained(made.folder).step_sizes}"


def test_a_short_field_is_written_in_physical_units():
    rows = np.random.default_rng(0).random((40, 4)) + 100
    np.savetxt("run.csv", rows, delimiter=",", header="t,x,y,u", comments="")
    made = fit("point_cloud", ["--trainer.max_epochs=1", "--out=r"], progress=False)
    model = from_pretrained(made.folder)
    with torch.no_grad():
        found = model(torch.full((5, 1), 100.5), torch.full((5, 2), 100.5))
    assert (found - 100.5).abs().max() < 3


def test_trajectories_are_split_by_number_or_by_time():
    np.save("one.npy", np.zeros((100, 2)))
    np.save("many.npy", np.zeros((10, 20, 2)))
    one = Trajectories("one.npy", num_trajectories="one", validation=0.3)
    one.setup()
    assert (one.seen.shape, one.held_out.shape) == ((1, 70, 2), (1, 30, 2))
    many = Trajectories("many.npy", validation=0.2)
    many.setup()
    assert (many.seen.shape, many.held_out.shape) == ((8, 20, 2), (2, 20, 2))
    assert Trajectories("many.npy", validation=0.0).sets[1] is None
    with pytest.raises(
        ValueError, match=r"axes \(trajectories, time, features\), got shape \(100, 2"
    ):
        Trajectories("one.npy").setup()
    with pytest.raises(ValueError, match=r"to train on must have more than 64 time steps.* got 20"):
        fit("trajectories", ["--data.path=many.npy"], progress=False)
    with pytest.raises(ValueError, match=r"step_sizes must be different, got \[1, 1\]"):
        fit("trajectories", ["--model.step_sizes=[1, 1]"], progress=False)
    draws = Draws(3, 1)
    first = [int(draws[i]) for i in range(3)]
    draws.set_epoch(1)
    assert len({*first, *(int(draws[i]) for i in range(3))}) == 6
    for dataset in (draws, RowBatches(PointCloud(*[torch.zeros(9, 1)] * 3), 3, 0)):
        with pytest.raises(IndexError, match="index must be below 3, got 3"):
            dataset[3]


@pytest.mark.slow
def test_a_field_is_fitted_to_scattered_points():
    rng = np.random.default_rng(0)
    t, x, y = rng.random((3, 3000))
    columns = np.stack([t, x, y, 100 + 5 * np.sin(2 * x + t) * y, 1e-3 * t], 1)
    np.savetxt("run.csv", columns, delimiter=",", header="t,x,y,u,v", comments="")
    words = ["--data.values=[u, v]", "--trainer.max_epochs=20", "--model.arguments.shape_width=24"]
    made = fit("point_cloud", [*words, "--data.batch_size=500"], progress=False)
    model = from_pretrained(made.folder)
    p, points = torch.full((50, 1), 0.5), torch.rand(50, 2)
    wanted = 100 + 5 * torch.sin(2 * points[:, 0] + 0.5) * points[:, 1]
    with torch.no_grad():
        found = model(p, points)
    assert (found[:, 0] - wanted).square().mean().sqrt() < 0.2 * wanted.std()
    assert (found[:, 1] - 5e-4).abs().max() < 2e-4
    assert made.lines[0].startswith("error of 300 rows held out, relative to the deviation of the")
    with pytest.raises(ValueError, match=r"coordinate_dim must be 2 as in the data, got 3"):
        fit("point_cloud", ["--model.arguments.coordinate_dim=3", "--out=r"], progress=False)
    with pytest.raises(
        ValueError, match=r"must be one of \['nif', 'multiscale_nif', 'last_layer_n"
    ):
        fit("point_cloud", ["--model.network=unet", "--out=r"], progress=False)


@pytest.mark.slow
def test_an_msnet_is_trained_on_a_scan_with_archie_beside():
    porespy = pytest.importorskip("porespy")
    pores = porespy.generators.blobs((48, 24, 24), porosity=0.65, blobiness=0.6, seed=1)
    np.where(pores, 5, 2).astype("uint8").tofile("scan.raw")
    words = ["--data.path=scan.raw", "--data.reading={shape: [48, 24, 24], dtype: uint8}"]
    words += ["--data.pore_values=[5]", "--data.size=16", "--data.num_samples=6", "--out=r"]
    made = fit("rock_volume", [*words, "--trainer.max_epochs=2"], progress=False)
    model = from_pretrained(made.folder)
    assert (type(model).__name__, model.num_features) == ("MSNet", 3)
    assert "error of the effective conductivity of 1 boxes held out" in made.lines[0]
    assert "Archie" in made.lines[0]
    for word, message in {
        "--data.size=14": r"size must be multiples of 4 for 3 scales, got \(14, 14, 14\)",
        "--data.size=[16, 16, 12]": r"the last two equal, got \[16, 16, 12\]",
        "--data.size=28": r"must have 56 planes, 28 of them to hold boxes out, got 48",
        "--data.reading={shape: [48, 576], dtype: uint8}": r"three axes, got shape \(48, 576\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            fit("rock_volume", [*words, word], progress=False, overwrite=True)
