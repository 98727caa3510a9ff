"""Predictions from files to files, which resume after they are killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import POSIX, files_up_to, read_only

import neurenix_ms as nms
from neurenix_ms._core.io.atomic import remove
from neurenix_ms.command import main
from neurenix_ms.datasets import create_array, open_array
from neurenix_ms.execution.run.passes import Passes
from neurenix_ms.prediction import predict_file, predicting, results

SHAPE = (1, 1, 45, 35)
ENDINGS = ["npy", "raw", "zarr", "h5", "nc", "tif"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, an image, and the current folder."""
    monkeypatch.chdir(tmp_path)
    nms.save(nms.BlurPool(1), "model.nx")  # for which a plan is found at once
    np.save("image.npy", np.random.default_rng(0).integers(0, 255, (90, 70), "uint8"))
    return tmp_path


def unet() -> None:
    """Replace the model by one that knows its channels and axes."""
    nms.save(nms.UNet(1, 3, features=[4], norm=None), "model.nx")


def predict(target: str = "out.npy", source: str = "image.npy", **more: Any) -> Any:
    options = {"tile_size": 16, "spatial_dims": 2, **more}
    return predict_file("model.nx", source, target, **options)


def whole() -> np.ndarray:
    """What the model gives for the whole image in memory."""
    x = torch.from_numpy(np.load("image.npy"))[None, None].float()
    with torch.no_grad():
        return nms.load("model.nx").eval()(x).numpy()


def left() -> list[str]:
    return sorted(os.listdir())


def test_a_shared_folder_is_a_model_too(folder: Path):
    pytest.importorskip("safetensors")
    unet()
    nms.load("model.nx").save_pretrained("shared")
    predict()
    predict_file("shared", "image.npy", "other.npy", tile_size=16, spatial_dims=2)
    np.testing.assert_array_equal(np.load("other.npy"), np.load("out.npy"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_holds_what_the_model_gives(folder: Path, ending: str):
    made = predict(f"out.{ending}")
    raw = {"shape": made.shape, "dtype": made.dtype} if ending == "raw" else {}
    assert (made.shape, made.dtype, made.num_tiles) == (SHAPE, "float32", 30)
    written = np.asarray(open_array(f"out.{ending}", **raw))
    np.testing.assert_allclose(written.reshape(made.shape), whole(), atol=2e-5)
    assert left() == ["image.npy", "model.nx", f"out.{ending}"]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, "uint8"), ({"out_dtype": "int32"}, "int32"), ({"tile_size": 500}, "uint8")],
)
def test_labels_are_small_integers(folder: Path, options: dict[str, Any], dtype: str):
    unet()
    predict("labels.npy", reduce="argmax", **options)
    labels = np.load("labels.npy")
    assert labels.dtype == dtype
    assert (labels == whole().argmax(1)).mean() > 0.999


def test_axes_keep_their_names(folder: Path):
    image = create_array("image.nc", (2, 40, 30), axes=("time", "lat", "lon"), units="m")
    image[:] = 1
    image.close()
    unet()
    predict_file("model.nx", "image.nc", "out.nc", first="batch", tile_size=16, reduce="argmax")
    assert open_array("out.nc").axes == ("time", "lat", "lon")
    predict_file("model.nx", "image.nc", "out.zarr", first="batch", tile_size=16)
    assert open_array("out.zarr").axes == ("time", "channel", "lat", "lon")


class Stop(BaseException):
    """Ends a run at a chosen tile."""


def stop_after(monkeypatch: pytest.MonkeyPatch, runs: int, error: BaseException) -> list[Any]:
    """Raise after so many tiles; the list grows with every tile that runs."""
    ran: list[Any] = []
    plain = Passes._run

    def counted(self: Passes, tile: Any, target: int | None) -> Any:
        if target is None:
            if len(ran) == runs:
                raise error
            ran.append(tile)
        return plain(self, tile, target)

    monkeypatch.setattr(Passes, "_run", counted)
    return ran


@pytest.mark.parametrize("ending", ["npy", "zarr", "raw"])
def test_a_resumed_run_runs_the_missing_tiles_only(folder: Path, ending: str, monkeypatch):
    predict("once.npy")
    with monkeypatch.context() as patch:
        stop_after(patch, 11, Stop())
        with pytest.raises(Stop):
            predict(f"out.{ending}")
    assert not Path(f"out.{ending}").exists()
    ran = stop_after(monkeypatch, 1000, Stop())
    made = predict(f"out.{ending}")
    assert (made.num_tiles, made.num_resumed, len(ran)) == (30, 11, 19)
    raw = {"shape": made.shape, "dtype": made.dtype} if ending == "raw" else {}
    assert np.array_equal(open_array(f"out.{ending}", **raw), np.load("once.npy"))
    assert left() == ["image.npy", "model.nx", "once.npy", f"out.{ending}"]


def _slow_run(seconds: float) -> None:
    """Predict in a process of its own, with tiles that take so long."""
    plain = Passes._run

    def slow(self: Passes, tile: Any, target: int | None) -> Any:
        time.sleep(seconds)
        return plain(self, tile, target)

    Passes._run = slow  # type: ignore[method-assign]
    predict("out.zarr")


def killed_at_random(count: int, moments: random.Random) -> int:
    """Kill runs of one prediction at random moments, finish it; return the number of kills."""
    start = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(count):
        process = start.Process(target=_slow_run, args=(0.01,))
        process.start()
        process.join(moments.uniform(0.05, 0.35))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            kills += 1
        process.join()
        if Path("out.zarr").exists():
            break
    if not Path("out.zarr").exists():
        predict("out.zarr")
    return kills


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_with_equal_bytes(folder: Path, count: int):
    kills = 0
    moments = random.Random(count)  # of all rounds, or each would repeat the one before
    predict("once.zarr")
    wanted = np.asarray(open_array("once.zarr"))
    while kills < count:
        kills += killed_at_random(count - kills, moments)
        assert np.array_equal(np.asarray(open_array("out.zarr")), wanted)
        files = [p.relative_to("once.zarr") for p in Path("once.zarr").rglob("*") if p.is_file()]
        assert len(files) > 1
        for file in files:
            assert (Path("out.zarr") / file).read_bytes() == (Path("once.zarr") / file).read_bytes()
        assert left() == ["image.npy", "model.nx", "once.zarr", "out.zarr"]
        remove(Path("out.zarr"))


def test_a_run_that_ended_before_its_folder_was_removed_is_complete(folder: Path, monkeypatch):
    for step in ("replace", "rmtree"):
        with monkeypatch.context() as patch:
            if step == "replace":
                calls: list[Any] = []
                real = os.replace

                def replace(source: Any, target: Any, real=real, calls=calls) -> None:
                    if Path(target).name == "out.npy":
                        raise Stop
                    calls.append(target)
                    real(source, target)

                patch.setattr(os, "replace", replace)
            else:
                patch.setattr(results.Results, "remove", lambda self: (_ for _ in ()).throw(Stop()))
            with pytest.raises(Stop):
                predict()
        assert ".out.npy.part" in left()
        ran = stop_after(monkeypatch, 0, AssertionError("no tile is run again"))
        made = predict()
        assert (made.num_tiles, made.num_resumed, ran) == (30, 30, [])
        assert left() == ["image.npy", "model.nx", "out.npy"]
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        os.remove("out.npy")


def interrupted(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5, Stop())
        with pytest.raises(Stop):
            predict(**more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model", "got model '"),
        ("input", r"got input \["),
        ("options", "got options .*16.* before and .*24.* now; pass overwrite"),
        ("run", "got run .*, 1, .* before and .*, 2, .* now"),
    ],
)
def test_a_run_with_something_else_is_refused(folder: Path, change: str, words: str, monkeypatch):
    interrupted(monkeypatch)
    options: dict[str, Any] = {}
    if change == "model":
        nms.save(nms.BlurPool(1, 5), "model.nx")
    elif change == "input":
        np.save("image.npy", np.zeros((90, 70), "uint8"))
        os.utime("image.npy", ns=(1, 1))
    elif change == "options":
        options = {"tile_size": 24}
    else:
        torch.set_num_threads(2)
    with pytest.raises(ValueError, match=f"same model, input and options, {words}"):
        predict(**options)
    made = predict(overwrite=True, **options)
    assert made.num_resumed == 0
    np.testing.assert_allclose(np.load("out.npy"), whole(), atol=2e-5)


def test_what_is_at_the_target_stays_unless_overwritten(folder: Path, monkeypatch):
    for target in ("out.npy", "out.zarr"):
        create_array(target, (2, 2))[:] = 1
        with pytest.raises(ValueError, match=f"target must be free, got {target}, which exists"):
            predict(target)
        assert np.asarray(open_array(target)).tolist() == [[1, 1], [1, 1]]
        assert f".{target}.part" not in left()
        interrupted(monkeypatch, target=target, overwrite=True)
        assert np.asarray(open_array(target)).tolist() == [[1, 1], [1, 1]]
        with pytest.raises(ValueError, match="target must be free"):
            predict(target)
        assert predict(target, overwrite=True).num_resumed == 5
        assert open_array(target).shape == SHAPE
    assert left() == ["image.npy", "model.nx", "out.npy", "out.zarr"]


def test_half_a_journal_is_not_trusted(folder: Path, monkeypatch):
    interrupted(monkeypatch)
    journal = Path(".out.npy.part/journal")
    facts, *tiles = journal.read_text().splitlines()
    assert json.loads(facts)["shape"] == list(SHAPE)
    assert sorted(int(n) for line in tiles for n in line.split()) == [0, 1, 2, 3, 4]
    journal.write_text(f"{facts}\n0 1\n2")  # a line without its end
    assert predict().num_resumed == 2
    interrupted(monkeypatch, target="out2.npy")
    Path(".out2.npy.part/journal").write_text("{")
    assert predict("out2.npy").num_resumed == 0


def test_one_process_at_a_time_writes_a_target(folder: Path):
    with (
        results.Results(Path("out.npy")).alone(),
        pytest.raises(
            ValueError, match=r"only one process at a time can write out.npy, got another"
        ),
    ):
        predict()
    assert predict().num_tiles == 30


@POSIX
def test_a_full_disk_is_an_error_before_anything_is_written(folder: Path, monkeypatch):
    with monkeypatch.context() as patch:
        ran = stop_after(patch, 1000, Stop())
        with files_up_to(4096), pytest.raises(OSError, match=r"File too large: 'out.npy'"):
            predict()
    assert len(ran) == 1  # which tells the shape of the result
    assert left() == ["image.npy", "model.nx"]


@POSIX
@pytest.mark.parametrize("ending", ["tif", "h5", "nc"])
def test_a_disk_that_is_full_at_the_end_loses_no_tile(folder: Path, ending: str):
    target = f"out.{ending}"
    predict("once.npy")
    size = Path("once.npy").stat().st_size  # too little for the head of another format
    with files_up_to(size), pytest.raises(OSError, match=f"File too large: '{target}'$"):
        predict(target)
    assert left() == [f".{target}.part", "image.npy", "model.nx", "once.npy"]
    assert predict(target).num_resumed == 30
    assert np.array_equal(open_array(target), np.load("once.npy"))


@POSIX
def test_a_disk_that_is_full_while_chunks_are_written_loses_no_tile(folder: Path, monkeypatch):
    def stop(*_: Any) -> None:
        raise Stop

    predict("once.npy")
    with monkeypatch.context() as patch:
        patch.setattr(results.Results, "_convert", stop)
        with pytest.raises(Stop):
            predict("out.zarr")
    with files_up_to(2000), pytest.raises(OSError, match=r"File too large: 'out.zarr'$"):
        predict("out.zarr")
    assert left() == [".out.zarr.part", "image.npy", "model.nx", "once.npy"]
    assert predict("out.zarr").num_resumed == 30
    assert np.array_equal(open_array("out.zarr"), np.load("once.npy"))


@POSIX
def test_a_folder_that_cannot_be_written_is_an_error(folder: Path):
    with read_only(folder), pytest.raises(PermissionError, match=r"Permission denied: 'out.npy'$"):
        predict()
    with pytest.raises(ValueError, match="target must be in a folder that exists, got none/out"):
        predict("none/out.npy")
    assert left() == ["image.npy", "model.nx"]


def test_an_input_that_changes_while_it_is_read_is_an_error(folder: Path, monkeypatch):
    plain = Passes._run
    count = 0

    def changing(self: Passes, tile: Any, target: int | None) -> Any:
        nonlocal count
        count += 1
        if count == 9:
            os.utime("image.npy", ns=(count, count))
        return plain(self, tile, target)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "_run", changing)
        with pytest.raises(ValueError, match=r"image.npy must not change while it is open"):
            predict()
    assert not Path("out.npy").exists()


def zarr_image() -> None:
    """Write the image in chunks too."""
    pytest.importorskip("zarr")
    image = np.load("image.npy")
    made = create_array("image.zarr", image.shape, image.dtype, chunks=(16, 16))
    made[...] = image


def change(place: Path, how: str) -> None:
    """Change a file in a folder: its content, its name, or whether it is there."""
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.suffix != ".json")
    file = files[len(files) // 2]
    if how == "content":
        content, times = file.read_bytes(), file.stat()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))  # as if it was older
    elif how == "removed":
        file.unlink()
    elif how == "renamed":
        file.rename(file.with_name(f"{file.name}0"))
    else:
        (place / "new").touch()


@pytest.mark.parametrize("how", ["content", "removed", "renamed", "new"])
def test_a_folder_that_changes_while_it_is_read_is_an_error(folder: Path, how: str, monkeypatch):
    zarr_image()
    plain = Passes._run
    count = 0

    def changing(self: Passes, tile: Any, target: int | None) -> Any:
        nonlocal count
        count += 1
        if count == 9:
            change(Path("image.zarr"), how)
        return plain(self, tile, target)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "_run", changing)
        with pytest.raises(ValueError, match=r"image.zarr must not change while it is open"):
            predict(source="image.zarr")
    assert not Path("out.npy").exists()
    with pytest.raises(ValueError, match=r"an interrupted run .* must have the same .* input"):
        predict(source="image.zarr")


@pytest.mark.parametrize("source", ["image.npy", "image.zarr"])
def test_an_input_that_changes_after_it_was_read_is_an_error(
    folder: Path, source: str, monkeypatch
):
    zarr_image()
    plain = predicting._Run.prediction

    def changing(self: Any) -> Any:
        for file in (Path("image.npy"), *Path("image.zarr").rglob("*")):
            os.utime(file, ns=(1, 1))
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(predicting._Run, "prediction", changing)
        with pytest.raises(ValueError, match=f"{source} must not change while it is"):
            predict(source=source)
    assert not Path("out.npy").exists()
    assert predict(source=source, overwrite=True).num_resumed == 0


def test_chunks_that_are_not_in_the_file_are_counted(folder: Path, capsys):
    zarr_image()
    assert predict(source="image.zarr").num_missing_chunks == 0
    change(Path("image.zarr"), "removed")
    assert open_array("image.zarr").num_missing_chunks == 1
    words = ["--spatial-dims", "2", "--overwrite", "--quiet"]
    assert main(["predict", "model.nx", "image.zarr", "out.npy", *words]) == 0
    assert "image.zarr: 1 chunk is not in the file: read as" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["content", "removed", "renamed", "new"])
def test_a_folder_that_changed_between_two_runs_is_refused(folder: Path, how: str, monkeypatch):
    zarr_image()
    with monkeypatch.context() as patch:
        stop_after(patch, 5, Stop())
        with pytest.raises(Stop):
            predict(source="image.zarr")
    change(Path("image.zarr"), how)
    with pytest.raises(ValueError, match=r"must have the same model, input and .*, got input \["):
        predict(source="image.zarr")
    assert predict(source="image.zarr", overwrite=True).num_resumed == 0


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("zzz", "out_dtype must be a type of NumPy, got 'zzz'"),
        ("float32,", "out_dtype must be a type of"),
        ("object", "out_dtype must be a type of numbers or booleans, got 'object'"),
        ("U3", "out_dtype must be a type of numbers or booleans, got 'U3'"),
        (3.5, "out_dtype must be a type of NumPy, got 3.5"),
    ],
)
def test_another_type_of_the_result_is_refused_before_the_tiles(folder: Path, dtype, words):
    with pytest.raises(ValueError, match=words):
        predict(out_dtype=dtype)
    assert left() == ["image.npy", "model.nx"]
    assert main(["predict", "model.nx", "image.npy", "out.npy", "--out-dtype", "zzz"]) == 1


def test_missing_values_are_counted_and_filled(folder: Path):
    image = np.ones((90, 70), "float32")
    image[20, 30:33] = np.nan
    np.save("image.npy", image)
    with pytest.raises(ValueError, match=r"got 3 missing values of .*, the first at \(20, 30\)"):
        predict(tile_size=500)
    assert left() == ["image.npy", "model.nx"]
    predict(fill=1.0)
    np.save("image.npy", np.ones((90, 70), "float32"))
    np.testing.assert_allclose(np.load("out.npy"), whole(), atol=1e-5)


def test_channels_and_axes_that_do_not_fit_are_named(folder: Path):
    unet()
    np.save("image.npy", np.zeros((3, 90, 70), "uint8"))
    with pytest.raises(ValueError, match=r"must fit a UNet of 1 channels, got shape \(1, 3, 90"):
        predict()
    assert predict(first="batch").shape == (3, 3, 90, 70)
    np.save("image.npy", np.zeros((90, 70), "uint8"))
    with pytest.raises(ValueError, match="must have 3 spatial axes and at most two others"):
        predict("other.npy", spatial_dims=3)
    with pytest.raises(ValueError, match="out must have a floating point type"):
        predict("other.npy", out_dtype="uint8")
    assert left() == ["image.npy", "model.nx", "out.npy"]


def test_all_images_get_the_condition(folder: Path):
    torch.manual_seed(0)
    model = nms.UNet(1, 1, [4], norm=None, condition_channels=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    nms.save(model, "model.nx")
    predict(tile_size=64, condition=[0.5, -1])
    x = torch.from_numpy(np.load("image.npy"))[None, None].float()
    wanted = model(x, torch.tensor([[0.5, -1]])).detach().numpy()
    np.testing.assert_allclose(np.load("out.npy"), wanted, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"condition must be a tensor of shape \(B, 2\)"):
        predict("other.npy")
    nms.save(nms.BlurPool(1), "model.nx")
    words = r"has no argument 'condition', got \[1.0\] and a BlurPool"
    with pytest.raises(ValueError, match=words):
        predict("third.npy", condition=[1])


def test_a_model_of_several_results_is_refused(folder: Path):
    nms.save(nms.GaussianPyramid(2), "model.nx")
    with pytest.raises(ValueError, match="the model must return one tensor, got 2"):
        predict(tile_size=32)
    assert left() == ["image.npy", "model.nx"]


def test_a_model_that_cannot_run_in_tiles_names_the_layer_for_whole(folder: Path):
    nms.save(nms.AtrousPyramidPooling(1, 2), "model.nx")
    with pytest.raises(ValueError, match=r"got 'branches.4' \(ImageBranch\)"):
        predict()
    with pytest.raises(ValueError, match="nothing"):
        predict(whole=["nothing"])


def test_a_model_without_a_number_of_axes_asks_for_it(folder: Path, monkeypatch):
    monkeypatch.setattr(predicting, "read_network", lambda *a, **k: torch.nn.Identity())
    with pytest.raises(ValueError, match="spatial_dims must be given for a Identity, whose number"):
        predict(spatial_dims=None)
    assert predict().shape == (1, 1, 90, 70)


def test_a_digest_is_that_of_all_files(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = predicting.digest(tmp_path)
    assert predicting.state(tmp_path)[0] == 2
    (tmp_path / "b").write_text("3")
    assert predicting.digest(tmp_path) != before


HUGE = """
import os, sys, torch
import neurenix_ms as nms
from neurenix_ms.prediction import predict_file
os.chdir(sys.argv[1])
torch.set_num_threads(1)
nms.save(nms.BlurPool(1, spatial_dims=3), "model.nx")
predict_file("model.nx", "volume.raw", "out.npy", shape=[1024, 2048, 2048], dtype="uint8",
             out_dtype="float16", memory_limit=2 * 10**8)
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_volume_of_4_gib_takes_less_than_2_gib(tmp_path: Path):
    with open(tmp_path / "volume.raw", "wb") as file:
        file.truncate(2**32)  # sparse: it takes no disk space
    run = [sys.executable, "-c", HUGE, str(tmp_path)]
    ran = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[1]) < 2 * 2**20  # KiB
    made = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert made.shape == (1, 1, 512, 1024, 1024)
    assert not made[0, 0, ::100].any()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["out.npz", "out.nii"])
def test_a_kind_that_cannot_be_written_is_refused_before_the_tiles(folder: Path, name: str):
    with pytest.raises(ValueError, match=rf"one of \['.bin', .*'.npy', .*\], got {name}$"):
        predict(name)
    assert left() == ["image.npy", "model.nx"]


@pytest.mark.parametrize("target", ["image.npy", "model.nx", "../{folder}/image.npy", "link.npy"])
def test_input_and_model_are_not_overwritten(folder: Path, target: str):
    Path("link.npy").symlink_to("image.npy")
    before = {name: Path(name).read_bytes() for name in ("image.npy", "model.nx")}
    with pytest.raises(ValueError, match="target must not hold the model or the source"):
        predict(target.format(folder=folder.name), overwrite=True)
    assert {name: Path(name).read_bytes() for name in before} == before


def test_a_target_that_holds_the_source_is_not_overwritten(folder: Path):
    create_array("group.zarr", (1, 8, 8), "float32")
    with pytest.raises(ValueError, match="target must not hold the model or the source"):
        predict_file("model.nx", "group.zarr/inner.npy", "group.zarr", overwrite=True)
    assert open_array("group.zarr").shape == (1, 8, 8)
