"""Tiles of several processes train and predict as one process does, also after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("zarr")

from neurenix_ms import UNet
from neurenix_ms.datasets import create_array, open_array
from neurenix_ms.recipes.domain.arrays import OwnImage, make_arrays
from neurenix_ms.recipes.domain.command import main
from neurenix_ms.recipes.domain.costs import (
    Layout,
    Machine,
    SharedLevel,
    layouts_of,
    relative_time,
    time_of_slabs,
)

MODULE = "neurenix_ms.recipes.domain"
ROOT = Path(__file__).parents[2]
SMALL = ["--size", "40", "--features", "2", "--whole", "level.inner", "--quiet"]


def start(
    processes: int,
    options: list[str],
    out: Path,
    stderr: int | None = None,
    small: Sequence[str] = SMALL,
) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-m", *torchrun, "-m", MODULE, *small, *options, "--out", str(out)]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, start_new_session=True, stderr=stderr
    )


def results(folder: Path, processes: int) -> dict:
    return json.loads((folder / "results.json").read_text())[f"{processes}x1"]


def test_arrays_do_not_depend_on_what_is_there(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_arrays(tmp_path / name, (30, 30, 30), seed=1)
    one, two = (open_array(tmp_path / name / "x.zarr")[:] for name in ("one", "two"))
    assert np.array_equal(one, two)
    clean = open_array(tmp_path / "one" / "target.zarr")[:]
    assert (one - clean).std() == pytest.approx(0.5, rel=0.1)
    assert clean[:, :, 15:].std() > 1.2 * clean[:, :, :15].std()  # tiles that differ


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, capsys):
    def stop(step: int) -> None:
        if step == 3:
            raise RuntimeError("stopped")

    options = [*SMALL, "--steps", "4", "--checkpoint-every", "2"]
    whole = main([*options, "--out", str(tmp_path / "whole")])
    with pytest.raises(RuntimeError, match="stopped"):
        main([*options, "--out", str(tmp_path / "stopped")], stop)
    assert not (tmp_path / "stopped/results.json").exists()
    assert main([*options, "--out", str(tmp_path / "stopped")]) == whole
    assert whole["losses"][-1] < whole["losses"][0]
    assert whole["differences"] == {"output": 0, "loss": 0, "gradient": 0}  # one tile
    assert "largest difference from one process, gradient: " in capsys.readouterr().out
    assert open_array(tmp_path / "whole/y.zarr")[:].std() > 0
    assert (tmp_path / "whole/domain.png").stat().st_size > 10_000
    words = r"must hold a run with \{.*'seed': 1\}, got \{.*'seed': 0\}"
    with pytest.raises(ValueError, match=words):
        main([*options, "--seed", "1", "--out", str(tmp_path / "whole")])


def own_options(out: Path) -> list[str]:
    options = ["--features", "2", "--whole", "level.inner", "--quiet", "--steps", "2"]
    return [*options, "--out", str(out), "--data"]


def test_an_image_of_ones_own_is_the_target(tmp_path):
    image = 7 + 3 * np.random.default_rng(0).random((300, 40)).cumsum(0)
    np.save(tmp_path / "image.npy", image.astype("float32"))
    words = [*own_options(tmp_path / "out"), str(tmp_path / "image.npy")]
    found = main(words)
    assert found["losses"][1] < found["losses"][0]
    assert found["differences"] == {"output": 0, "loss": 0, "gradient": 0}  # one tile
    x, target = (open_array(tmp_path / f"out/{name}.zarr")[0, 0] for name in ("x", "target"))
    wanted = (image - image.mean()) / image.std()
    np.testing.assert_allclose(target, wanted, atol=1e-5)
    assert (x - target).std() == pytest.approx(0.5, rel=0.02)
    assert open_array(tmp_path / "out/y.zarr").shape == (1, 1, 300, 40)
    made = (tmp_path / "out/x.zarr").stat().st_mtime_ns
    assert main(words) == found
    assert (tmp_path / "out/x.zarr").stat().st_mtime_ns == made
    np.save(tmp_path / "image.npy", image)  # another file of the same name
    with pytest.raises(ValueError, match=r"must hold a run with \{.*'data': '.*\}, got \{"):
        main(words)
    main([*words, "--fresh"])


def test_a_volume_of_ones_own_is_the_target(tmp_path):
    create_array(tmp_path / "volume.zarr", (50, 9, 8), "uint8")[...] = np.tile(
        np.arange(8) // 2, (50, 9, 1)
    )
    array = open_array(tmp_path / "volume.zarr")
    make_arrays(tmp_path, array.shape, 0, OwnImage(array))
    target = open_array(tmp_path / "target.zarr")[0, 0]
    np.testing.assert_allclose(target[49, 8], (np.arange(8) // 2 - 1.5) / np.sqrt(1.25), rtol=1e-6)


def test_a_file_that_changes_makes_no_array(tmp_path):
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((20, 20)))
    own = OwnImage(open_array(tmp_path / "image.npy"))
    assert own.moments
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((20, 21)))
    with pytest.raises(ValueError, match=r"image.npy must not change while it is open"):
        make_arrays(tmp_path, (20, 20), 0, own)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("line", [], "must have two or three axes of at least 8 pixels or voxels, got shape (60,)"),
        (
            "small",
            [],
            "must have two or three axes of at least 8 pixels or voxels, got shape (9, 7)",
        ),
        ("flat", [], "flat.npy must have different values, got 0.1 everywhere"),
        ("hole", [], "got 1 missing values of 144 in this slice, the first at (9, 3)"),
        ("endless", [], "got 2 infinite values of 40 in this slice, the first at (256, 3)"),
        ("complex", [], "complex.npy must have real numbers, got type complex64"),
        ("flat", ["--size", "30"], "--size is for an image that is made, got the file"),
        ("flat", ["--dims", "2"], "--dims is for an image that is made, got the file"),
        ("none", [], "--data: path must be a file or folder that exists, got"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(name, options, message, tmp_path, capsys):
    values = np.random.default_rng(0).random((12, 12))
    hole, endless = values.copy(), np.ones((260, 10))
    hole[9, 3], endless[256:258, 3] = np.nan, np.inf
    arrays = {
        "line": np.ones(60),
        "small": np.ones((9, 7)),
        "flat": np.full((12, 12), 0.1),
        "hole": hole,
        "endless": endless,
        "complex": values.astype("complex64"),
    }
    for known, array in arrays.items():
        np.save(tmp_path / f"{known}.npy", array)
    with pytest.raises(SystemExit) as ended:
        main([*own_options(tmp_path / "out"), str(tmp_path / f"{name}.npy"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out/settings.json").exists()


def test_how_a_file_is_read_needs_a_file(tmp_path, capsys):
    for words, message in {
        "--key a": "--key, --shape and --dtype are for a file in --data, got none",
        f"--data {tmp_path}": "--data: path must end in one of [",
    }.items():
        with pytest.raises(SystemExit):
            main(words.split())
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--size", "7"], "--size must be at least 8, got 7"),
        (["--tile", "0"], "--tile must be a number of at least 1 or auto, got 0"),
        (["--scaling", "0"], "--scaling must be at least 1, got 0"),
        (["--no-compare", "--rounds", "1"], "--rounds must be 0 with --no-compare"),
        (["--scaling", "64"], "--rounds must be at least 1 with --scaling"),
        (["--weak", "64"], "--rounds must be at least 1 with --weak"),
    ],
)
def test_wrong_options_raise(wrong, message, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    assert message in capsys.readouterr().err


def test_time_grows_with_what_every_process_runs():
    machine = Machine(1e-6)

    def times(layout: Layout) -> list[float]:
        return [relative_time(layout, 64, 2, count, machine) for count in (1, 8, 64)]

    one, few, many = times(Layout((), 16, 0.0, 0.0))
    assert one == 1.0
    assert few == pytest.approx(many, rel=0.2)  # the halo only
    assert few >= 1.5**2
    one, few, many = times(Layout(("part",), 0, 0.5, 1.0))
    assert few >= 0.5 + 0.5 * 8
    assert many >= 0.5 + 0.5 * 64
    _, few, many = times(Layout((), 4, 0.0, 0.0, (SharedLevel(8, 0.5, 2.0),)))
    halos = 0.5 * (1 + 8 / 64) ** 2 + 0.5 * (1 + 16 / 64) ** 2
    bytes_in_halos = 4 * 2 * (80**2 - 64**2) / machine.bandwidth
    waiting = 40 * 3 * machine.latency
    assert few == pytest.approx(halos + (bytes_in_halos + waiting) / (1e-6 * 64**2))
    assert many - few == pytest.approx(waiting / (1e-6 * 64**2))


def test_slabs_have_a_halo_on_the_sides_of_their_neighbors():
    layout = Layout((), 4, 0.0, 0.0, (SharedLevel(8, 0.25, 2.0),))
    times = [time_of_slabs(layout, 32, 3, count) for count in (1, 2, 3, 9)]
    ends, middle = (0.75 * (1 + 4 * n / 32) + 0.25 * (1 + 8 * n / 32) for n in (1, 2))
    assert times == pytest.approx([1, ends, middle, middle])


@pytest.mark.slow
def test_weak_scaling_of_one_process_is_that_of_its_core(tmp_path):
    options = [*SMALL, "--steps", "1", "--rounds", "1", "--out", str(tmp_path)]
    weak = main([*options, "--weak", "16"])["weak"]
    assert (weak["predicted"], weak["edge"]) == (1.0, 16)
    assert weak["training, tiles"]["sent_bytes"] == 0
    x, y = (open_array(tmp_path / "weak-16-1" / f"{name}.zarr")[:] for name in "xy")
    assert x.shape == y.shape == (1, 1, 16, 16)
    assert y.std() > 0
    assert len((tmp_path / "weak.md").read_text().strip().splitlines()) == 3
    main([*options, "--weak", "24"])
    assert len((tmp_path / "weak.md").read_text().strip().splitlines()) == 3  # of this length only


def test_layouts_of_a_network():
    whole, upper, shared = layouts_of(UNet(1, 1, features=[8], norm=None), (1, 1, 64, 64))
    assert (whole.whole, upper.whole, shared.whole) == ((), ("level.inner",), ())
    (level,) = shared.levels
    assert (shared.halo, level.halo) == (upper.halo, 4)  # two convolutions at half the resolution
    assert (shared.share, level.share) == (0, upper.share)
    assert level.values == 2 * upper.values  # its input and its result
    assert whole.halo > upper.halo > 0
    assert 0 == whole.share < upper.share < 1
    assert (whole.values, upper.values) == (0.0, 2.0)  # 8 / 2²


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_end_as_one_does(processes, tmp_path):
    options = ["--steps", "3", "--precision", "64"]
    assert start(processes, options, tmp_path).wait(300) == 0
    found, one = (
        results(tmp_path, processes),
        main([*SMALL, *options, "--out", str(tmp_path / "one")]),
    )
    assert len(set(found["weights"])) == 1
    assert found["losses"] == pytest.approx(one["losses"], rel=1e-10)
    assert max(found["differences"].values()) < 1e-10


@pytest.mark.slow
def test_processes_share_an_image_from_a_file(tmp_path):
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((48, 40)).cumsum(0))
    options = ["--steps", "2", "--data", str(tmp_path / "image.npy")]
    run = start(2, options, tmp_path / "out", small=SMALL[2:])
    assert run.wait(300) == 0
    found = results(tmp_path / "out", 2)
    assert max(found["differences"].values()) < 1e-4
    assert open_array(tmp_path / "out/y.zarr").shape == (1, 1, 48, 40)


@pytest.mark.slow
def test_weak_scaling_is_measured_beside_its_prediction(tmp_path):
    options = ["--steps", "1", "--rounds", "1", "--weak", "24", "--whole", "auto"]
    assert start(2, options, tmp_path).wait(300) == 0
    weak = results(tmp_path, 2)["weak"]
    assert len(weak["training, tiles"]["cpu_seconds"]) == 2
    assert len(weak["training, whole"]["cpu_seconds"]) == 1
    assert weak["training, tiles"]["sent_bytes"] > weak["inference, tiles"]["sent_bytes"] > 0
    assert 1 < weak["predicted"] < 2
    assert open_array(tmp_path / "weak-24-2/y.zarr").shape == (1, 1, 48, 24)
    _, _, row = (tmp_path / "weak.md").read_text().strip().splitlines()
    assert row.startswith(f"| 2 | {weak['predicted']:.2f} x |")


@pytest.mark.slow
def test_weak_scaling_of_levels_that_are_not_shared_is_refused(tmp_path):
    options = ["--features", "2", "2", "2", "--steps", "1", "--rounds", "1", "--weak", "12"]
    run = start(2, [*options, "--whole", "auto"], tmp_path, stderr=subprocess.PIPE)
    _, words = run.communicate(timeout=300)
    assert run.returncode != 0
    assert b"--weak must be so long that all 3 levels are shared" in words


@pytest.mark.slow
@pytest.mark.parametrize("tile", ["auto", "8"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tile, tmp_path):
    options = ["--tile", tile, "--steps", "40", "--checkpoint-every", "3"]
    assert start(2, options, tmp_path / "whole").wait(300) == 0
    run = start(2, options, tmp_path / "killed")
    last = tmp_path / "killed/last.pt"
    while not last.exists():
        assert run.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for process in (run.pid, *map(int, workers)):  # workers have sessions of their own
        os.kill(process, signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL
    assert 3 <= len(torch.load(last, weights_only=True)["losses"]) < 40
    assert not (tmp_path / "killed/results.json").exists()
    assert start(2, options, tmp_path / "killed").wait(300) == 0
    whole, killed = (results(tmp_path / name, 2) for name in ("whole", "killed"))
    assert killed["weights"] == whole["weights"] == whole["weights"][:1] * 2
    assert killed["losses"] == whole["losses"]
