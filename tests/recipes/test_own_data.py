"""Recipes run on files of the user's own, and say in one line what they need of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurenix_ms.datasets import create_array
from neurenix_ms.recipes.hierarchy import command as hierarchy
from neurenix_ms.recipes.implicit import command as implicit
from neurenix_ms.recipes.msnet import command as msnet
from neurenix_ms.recipes.msnet import data as msnet_data
from neurenix_ms.recipes.sequences import command as sequences


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rock(shape: tuple[int, ...] = (80, 34, 32)) -> None:
    """Labels of which 2 and 3 are pores, in layers along the flow."""
    random = np.random.default_rng(0).random(shape)
    labels = np.where(random < 0.75, 3, 1)
    labels[:, ::7] = 2
    labels.astype("uint8").tofile("rock.raw")


ROCK = ["--data", "rock.raw", "--shape", "80,34,32", "--dtype", "uint8", "--pore-values", "2", "3"]
SMALL = {
    "samples": 2,
    "held-out": 2,
    "larger": 2,
    "large-samples": 2,
    "seeds": 0,
    "size": 16,
    "epochs": 1,
    "filters": 2,
    "scales": 2,
}
BOXES = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_msnet_takes_boxes_of_a_scan_and_resumes():
    rock()
    text = msnet.main([*BOXES, *ROCK, "--out", "out"])
    for row in ("| 16³ | 2 |", "| 32³ | 2 |"):
        assert row in text
    said = Path("out/msnet.md").read_text()
    assert "Boxes of rock.raw; its last 32 of 80 planes are unseen." in said
    assert len(list(Path("out/boxes").glob("*"))) == 4
    assert not Path("data").exists()
    written = Path("out/seed_0/last.ckpt").stat().st_mtime_ns
    assert msnet.main([*BOXES, *ROCK, "--out", "out"]) == text
    assert Path("out/seed_0/last.ckpt").stat().st_mtime_ns == written
    pores = np.fromfile("rock.raw", "uint8")
    pores[0] = 3 if pores[0] == 1 else 1  # another rock
    pores.tofile("rock.raw")
    msnet.main([*BOXES, *ROCK, "--out", "out"])
    assert Path("out/seed_0/last.ckpt").stat().st_mtime_ns != written


def test_boxes_that_are_unseen_are_of_other_planes(monkeypatch):
    rock()
    drawn: list[Any] = []

    class Drawn(list):
        def __init__(self, root: Any, part: Any, count: int, size: int, pores: Any, seed: int):
            super().__init__([{}] * count)
            drawn.append((part.start, part.shape[0], size, pores, seed, str(root)))
            self.cache = type("Cache", (), {"folder": Path("x")})

    monkeypatch.setattr(msnet_data, "ScannedConduction", Drawn)
    monkeypatch.setattr(msnet, "Laws", None)  # it is called next
    with pytest.raises(TypeError, match="not callable"):
        msnet.main([*BOXES, *ROCK])
    assert drawn == [
        (0, 48, 16, [2, 3], 0, "runs/msnet/boxes"),
        (0, 48, 32, [2, 3], 0, "runs/msnet/boxes"),
        (48, 32, 16, [2, 3], 1, "runs/msnet/boxes"),
        (48, 32, 32, [2, 3], 1, "runs/msnet/boxes"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data rock.raw", "a raw file needs shape and dtype, got None and None for rock.raw"),
        ("--data none.npy", "--data: path must be a file or folder that exists, got none.npy"),
        ("--data notes.txt", "--data: path must end in one of"),
        (
            "--data . --key a",
            "--key, --shape and --dtype are for a file in --data, got the folder .",
        ),
        (
            "--data small.npy",
            "must have at least (128, 64, 64) voxels for boxes of --size 32, and uns",
        ),
        ("--data flat.npy", "twice the size, got shape (80, 34) in flat.npy"),
        (
            "--data rock.raw --shape 8,x --dtype u1",
            "must be lengths such as 64x48, got '8,x'",
        ),
    ],
)
def test_a_scan_that_does_not_fit_is_one_line(words: str, message: str, capsys):
    rock()
    Path("notes.txt").write_text("no array")
    np.save("small.npy", np.zeros((80, 34, 32), "uint8"))
    np.save("flat.npy", np.zeros((80, 34), "uint8"))
    with pytest.raises(SystemExit) as ended:
        msnet.main(words.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert sum("error:" in line for line in said) == 1


@pytest.mark.slow
def test_a_scan_without_a_path_is_one_line(capsys):
    np.zeros((80, 34, 32), "uint8").tofile("rock.raw")
    with pytest.raises(SystemExit):
        msnet.main([*BOXES, *ROCK])
    assert "--data: none of 1000 boxes of [16, 16, 16] voxels conducts" in capsys.readouterr().err


def circles(count: int, steps: int) -> np.ndarray:
    phase = np.linspace(0, 6, count)[:, None] + 0.1 * np.arange(steps)
    return np.stack([np.sin(phase), np.cos(phase)], -1)


def test_a_hierarchy_is_trained_on_trajectories_of_a_file(monkeypatch):
    np.save("states.npy", circles(20, 60))
    words = ["--data", "states.npy", "--dt", "0.1", "--iterations", "3", "--out", "out"]
    text = hierarchy.main(words)
    head, _, row = text.splitlines()
    assert "hybrid" not in head
    assert row.startswith("| states.npy | 0 % | ")
    (note,) = Path("out").glob("*.json")
    found = json.loads(note.read_text())
    assert set(found["errors"]) == {"1", "2", "4", "8", "16", "coupled"}
    assert (found["dt"], len(found["curves"]["coupled"])) == (0.1, 59)
    assert Path("out/states.npy.png").stat().st_size > 10_000
    trained = hierarchy.trained
    monkeypatch.setattr(hierarchy, "trained", None)  # nothing is trained again
    assert hierarchy.main(words) == text
    monkeypatch.setattr(hierarchy, "trained", trained)
    np.save("states.npy", circles(20, 50))  # another file of the same name
    assert len(hierarchy.main(words).splitlines()) == 4


def test_a_single_trajectory_is_split_in_time():
    np.save("one.npy", circles(1, 200)[0])
    _, own = hierarchy._options(["--data", "one.npy"])
    assert own is not None
    assert {name: part.shape for name, part in own.parts.items()} == {
        "train": (1, 160, 2),
        "validation": (1, 20, 2),
        "test": (1, 20, 2),
    }
    np.testing.assert_array_equal(own.parts["test"][0], np.load("one.npy")[180:])
    assert (own.step_sizes, own.settings.dt) == ([1, 2, 4, 8], 1)
    text = hierarchy.main(["--data", "one.npy", "--iterations", "2"])
    assert "| one.npy | 0 % |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--data two.npy",
            "three trajectories or more of 4 time steps, or a single one of 12, got",
        ),
        (
            "--data line.npy",
            "the axes (trajectories, time, features), or (time, features) of a single",
        ),
        (
            "--data two.npy --system hopf",
            "--system is for solved trajectories, got the file two.npy",
        ),
        ("--data two.npy --dt 0", "--dt must be above 0, got 0"),
        ("--dt 1", "--dt is for a file in --data, got the folder data"),
        ("--data hole.npy", "got 1 missing values of 4000"),
    ],
)
def test_trajectories_that_do_not_fit_are_one_line(words: str, message: str, capsys):
    np.save("two.npy", circles(2, 60))
    np.save("line.npy", np.zeros(60))
    hole = circles(20, 100)
    hole[3, 4, 0] = np.nan
    np.save("hole.npy", hole)
    with pytest.raises(SystemExit):
        hierarchy.main(words.split())
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_models_are_compared_on_a_sequence_of_a_file(monkeypatch):
    monkeypatch.setattr(sequences, "HIDDEN", 8)
    np.save("own.npy", 3 + 5 * circles(1, 120)[0])
    words = ["--data", "own.npy", "--iterations", "2", "--out", "out"]
    text = sequences.main(words)
    rows = text.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == list(sequences.MODELS)
    assert rows[0].startswith("| own.npy | coupled steppers | ")
    assert float(rows[2].split(" | ")[3]) < 1e-3  # echoes follow a circle
    assert not Path("data").exists()
    trained = sequences.MODELS
    monkeypatch.setattr(sequences, "MODELS", dict.fromkeys(trained))  # nothing is trained again
    assert sequences.main(words) == text
    monkeypatch.setattr(sequences, "MODELS", trained)
    np.save("own.npy", circles(1, 130)[0])  # another file of the same name
    assert sequences.main(words) != text


def test_a_sequence_is_seen_up_to_a_part(monkeypatch):
    np.save("own.npy", circles(1, 160)[0])
    seen = []

    def model(x, options):
        seen.append(x)
        return lambda history, n: history[:, -1:].expand(-1, n, -1)

    monkeypatch.setattr(sequences, "MODELS", {"last": model})
    sequences.main(["--data", "own.npy", "--out", "out"])
    assert seen[0].shape == (1, 100, 2)
    assert seen[0].mean() == pytest.approx(0, abs=1e-5)
    assert seen[0].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data short.npy", "(time, features) and at least 96 times, got shape (95, 2)"),
        ("--data many.npy", "(time, features) and at least 96 times, got shape (3, 100, 2)"),
        ("--data flat.npy", "flat.npy must have different values, got 1 everywhere"),
        ("--data hole.npy", "got 1 missing values of 200"),
        ("--key x", "--key, --shape and --dtype are for a file in --data, got the folder data"),
    ],
)
def test_a_sequence_that_does_not_fit_is_one_line(words: str, message: str, capsys):
    np.save("short.npy", circles(1, 95)[0])
    np.save("many.npy", circles(3, 100))
    np.save("flat.npy", np.ones((100, 2)))
    hole = circles(1, 100)[0]
    hole[7, 1] = np.nan
    np.save("hole.npy", hole)
    with pytest.raises(SystemExit):
        sequences.main(words.split())
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_zarr_folder_and_a_folder_of_images_are_files_of_ones_own():
    pytest.importorskip("zarr")
    tifffile = pytest.importorskip("tifffile")
    array = create_array("states.zarr", (20, 60, 2))
    array[...] = circles(20, 60)
    _, own = hierarchy._options(["--data", "states.zarr"])
    assert own is not None
    assert own.parts["train"].shape == (16, 60, 2)
    Path("scan").mkdir()
    for number in range(128):
        tifffile.imwrite(f"scan/{number:03}.tif", np.zeros((64, 64), "uint8"))
    _, scan, _ = msnet._options(["--data", "scan"])
    assert scan is not None
    assert scan.shape == (128, 64, 64)
    Path("cache").mkdir()
    assert msnet._options(["--data", "cache"])[1] is None


def waves() -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(6), np.arange(8), np.arange(10), indexing="ij")
    return np.sin(0.5 * x - 0.3 * t) + 0.1 * y


def test_a_field_of_a_file_is_compressed(monkeypatch):
    pytest.importorskip("h5netcdf")
    array = create_array(
        "sst.nc",
        (6, 8, 10),
        axes=["time", "lat", "lon"],
        units="degC",
        coordinates={"time": ("time", np.arange(6) * 5.0, {"units": "days since 2020-01-01"})},
    )
    array[...] = waves()
    array.close()
    words = [
        "turbulence",
        "--data",
        "sst.nc",
        "--steps",
        "100",
        "--seeds",
        "0",
        "--out",
        "out",
        "--runs",
        "out",
    ]
    text = implicit.main(words)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [
        "POD, rank 1",
        "POD, rank 2",
        "POD, rank 4",
        "cosine transform",
        "cosine transform",
        "NIF, 23 wide",
        "NIF, 48 wide",
    ]
    (note,) = Path("out").glob("*.json")
    assert note.name.startswith("implicit_sst.nc_")
    fields = json.loads(note.read_text())["fields"]
    assert (fields["t"], fields["label"]) == (15, "sst.nc, degC")
    np.testing.assert_allclose(fields["true"], waves()[3], atol=1e-3)
    assert note.with_suffix(".png").stat().st_size > 10_000
    monkeypatch.setitem(implicit.CASES, "turbulence", (None, *implicit.CASES["turbulence"][1:]))
    assert implicit.main(words) == text  # nothing is trained again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "wave --data field.npy",
            "a file in --data is for the case turbulence, got field.npy and wa",
        ),
        ("turbulence --data flat.npy", "(time, height, width) with at least (3, 2, 2) values, got"),
        ("turbulence --data zero.npy", "zero.npy must have different values, got 0 everywhere"),
    ],
)
def test_a_field_that_does_not_fit_is_one_line(words: str, message: str, capsys):
    np.save("field.npy", waves())
    np.save("flat.npy", np.zeros((9, 8)))
    np.save("zero.npy", np.zeros((9, 8, 8)))
    with pytest.raises(SystemExit):
        implicit.main(words.split())
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
