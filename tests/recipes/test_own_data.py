"""Recipes run on files of the user's own, and say in one line what they need of one."""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurenix_ms.datasets import create_array, open_array
from neurenix_ms.recipes.adaptive import command as adaptive
from neurenix_ms.recipes.adaptive import scores
from neurenix_ms.recipes.adaptive.settings import own_system
from neurenix_ms.recipes.demo import command as demo
from neurenix_ms.recipes.hierarchy import command as hierarchy
from neurenix_ms.recipes.implicit import command as implicit
from neurenix_ms.recipes.msnet import command as msnet
from neurenix_ms.recipes.msnet import data as msnet_data
from neurenix_ms.recipes.multirate import command as multirate
from neurenix_ms.recipes.multirate.settings import own_field
from neurenix_ms.recipes.ocean import options as drift
from neurenix_ms.recipes.permeability import command as permeability
from neurenix_ms.recipes.sequences import command as sequences
from neurenix_ms.timestepping import HierarchicalTimeStepper, TimeStepper


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


IMAGE = ["--data", "rock.npy", "--pore-values", "2", "3", "--samples", "8", "--size", "16"]


def image(shape: tuple[int, ...] = (120, 40)) -> None:
    labels = np.where(np.random.default_rng(0).random(shape) < 0.8, 3, 1)
    labels[:, ::7] = 2
    np.save("rock.npy", labels.astype("uint8"))


@pytest.mark.slow
def test_the_demo_takes_boxes_of_an_image_and_resumes():
    image()
    words = [*IMAGE, "--epochs", "1", "--out", "out"]
    text = demo.main(words)
    assert "error of D_rel, mean" in text
    said = Path("out/table.md").read_text()
    assert (
        "Boxes of rock.npy; its last 24 of 120 rows are unseen. 2 unseen geometries of 16 x" in said
    )
    assert Path("out/demo.png").stat().st_size > 10_000
    assert not Path("data").exists()
    last = Path("out/multiscale/last.ckpt")
    written = last.stat().st_mtime_ns
    assert demo.main(words) == text
    assert last.stat().st_mtime_ns == written
    labels = np.load("rock.npy")
    labels[0, 1] = 4 - labels[0, 1]  # 1 or 3: another image
    np.save("rock.npy", labels)
    demo.main(words)
    assert last.stat().st_mtime_ns != written


def test_boxes_of_an_image_that_are_unseen_are_of_other_rows(monkeypatch):
    image()
    drawn: list[Any] = []

    class Drawn(list):
        def __init__(self, root: Any, part: Any, count: int, size: int, pores: Any, seed: int):
            super().__init__([{}] * count)
            drawn.append((part.start, part.shape, count, size, pores, seed, str(root)))
            self.cache = type("Cache", (), {"folder": Path("x")})

    monkeypatch.setattr(demo, "ScannedConduction", Drawn)
    monkeypatch.setattr(demo, "_trained", None)  # it is called next
    with pytest.raises(TypeError, match="not callable"):
        demo.main(IMAGE)
    assert drawn == [
        (0, (96, 40), 6, 16, [2, 3], 0, "runs/demo/boxes"),
        (96, (24, 40), 2, 16, [2, 3], 1, "runs/demo/boxes"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--data rock.npy --size 64",
            "--data must have at least (128, 64) pixels for boxes of --size 64, and unseen ones, got "
            "shape (120, 40) in rock.npy",
        ),
        (
            "--data volume.npy --size 16",
            "for boxes of --size 16, and unseen ones, got shape (40, 4",
        ),
        ("--data hole.npy --size 16", "got 1 missing values of "),
        ("--key a", "--key, --shape and --dtype are for a file in --data, got the folder data"),
    ],
)
def test_an_image_that_does_not_fit_is_one_line(words: str, message: str, capsys):
    image()
    np.save("volume.npy", np.zeros((40, 40, 40), "uint8"))
    hole = np.ones((120, 40))
    hole[50, 7] = np.nan
    np.save("hole.npy", hole)
    with pytest.raises(SystemExit):
        demo.main([*words.split(), "--samples", "8"])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


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
        ("--data two.npy --dt 0", "--dt must be above 0 and finite, got 0"),
        ("--dt 1", "--dt is for a file in --data, got the folder data"),
        ("--data hole.npy", "got 1 missing values of 4000"),
        (
            "--data endless.npy",
            "got 2 infinite values of 2400 in this slice, the first at (1, 2, 0)",
        ),
        ("--data complex.npy", "complex.npy must have real numbers, got type complex64"),
        ("--data short.npy", "or a single one of 12, got shape (11, 2)"),
        ("--data same.npy", "same.npy must have different values, got 3 everywhere"),
    ],
)
def test_trajectories_that_do_not_fit_are_one_line(words: str, message: str, capsys):
    np.save("two.npy", circles(2, 60))
    np.save("line.npy", np.zeros(60))
    hole = circles(20, 100)
    hole[3, 4, 0] = np.nan
    np.save("hole.npy", hole)
    endless = circles(20, 60)
    endless[1:3, 2, 0] = np.inf
    np.save("endless.npy", endless)
    np.save("complex.npy", circles(20, 60).astype("complex64"))
    np.save("short.npy", circles(1, 11)[0])
    np.save("same.npy", np.full((20, 60, 2), 3.0))
    with pytest.raises(SystemExit):
        hierarchy.main(words.split())
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_strides_are_compared_on_trajectories_of_a_file(monkeypatch):
    monkeypatch.setattr(scores, "INTERPOLATIONS", (0.01, 0.1))
    states = 1e-4 * np.concatenate([circles(12, 40), np.ones((12, 40, 1))], axis=-1)
    np.save("states.npy", states)  # in a small unit, with a constant
    words = ["--data", "states.npy", "--dt", "0.5", "--iterations", "3", "--seeds", "0", "1"]
    words += ["--out", "out", "--runs", "runs"]
    text = adaptive.main(words)
    rows = text.splitlines()[2:]
    assert rows[0].startswith("| states.npy | most accurate single stride | ")
    assert "nan" not in text
    assert not Path("data").exists()
    (network, *_) = notes = sorted(Path("runs").glob("states.npy_*_0.5_?.json"))
    assert len(notes) == 2
    run = json.loads(network.read_text())
    assert {len(way["label"]) for way in run["ways"] if way["kind"] == "single"} == {1}
    assert max(way["label"][0] for way in run["ways"] if way["kind"] == "single") == 16
    true = np.array(run["example"]["true"])
    np.testing.assert_allclose(true, states[-1, 1:], rtol=1e-3, atol=1e-9)
    assert Path("out/adaptive.png").stat().st_size > 10_000
    monkeypatch.setattr(adaptive, "trained", None)  # nothing is trained again
    assert adaptive.main(words) == text
    np.save("states.npy", circles(12, 40))  # another file of the same name
    with pytest.raises(TypeError, match="not callable"):
        adaptive.main(words)


@pytest.mark.parametrize("unit", [1e-3, 50.0])
def test_the_published_rule_compares_changes_in_units_of_the_file(unit: float):
    np.save("states.npy", unit * circles(12, 40))
    name, settings = own_system(open_array("states.npy"), argparse.Namespace(dt=0.5))
    assert settings.unit == pytest.approx(unit**2 / 2, rel=0.05)  # the variance of a sine
    assert name.startswith("states.npy_")
    assert (settings.dt, settings.step_sizes) == (0.5, (1, 2, 4, 8, 16))
    steppers = [TimeStepper(torch.nn.Identity(), stride) for stride in (1, 4)]  # both double
    hierarchy = HierarchicalTimeStepper(steppers)
    x0 = torch.full((1, 2), 0.15)
    found = []
    for plain, scaled in zip(
        scores.fixed_ways(hierarchy), scores.fixed_ways(hierarchy, unit**2), strict=True
    ):
        assert plain.label == scaled.label
        states = plain.forecast(x0, 4)
        scaled_states = scaled.forecast(unit * x0, 4)
        torch.testing.assert_close(scaled_states, unit * states, rtol=1e-5, atol=0)
        found += [states[0, -1, 0].item()] * (plain.kind == "change")
    assert found == pytest.approx([2.4] * 4 + [0.3] * 2)  # small steps, or one large


def ring(count: int, steps: int, points: int = 20) -> np.ndarray:
    start = np.linspace(0, 6, count)[:, None, None]
    place = 2 * np.pi * np.arange(points) / points
    return 5 + 3 * np.sin(place + start + 0.1 * np.arange(steps)[:, None])


def test_models_are_compared_on_a_ring_of_a_file(monkeypatch):
    np.save("ring.npy", ring(6, 60))
    words = ["--data", "ring.npy", "--iterations", "2", "--seeds", "0"]
    words += ["--out", "out", "--runs", "runs"]
    text = multirate.main(words)
    rows = text.splitlines()[2:]
    assert rows[0].startswith("| ring.npy, end at 59 | single-rate network | ")
    assert len(rows) == 3
    assert not Path("data").exists()
    assert len(list(Path("runs").glob("ring.npy_*_0.json"))) == 3
    assert Path("out/multirate.png").stat().st_size > 10_000
    monkeypatch.setattr(multirate, "fit_rollouts", None)  # nothing is trained again
    assert multirate.main(words) == text
    np.save("ring.npy", ring(6, 61))  # another file of the same name
    with pytest.raises(TypeError, match="not callable"):
        multirate.main(words)


def test_a_ring_is_standardized_and_split():
    np.save("one.npy", ring(1, 1000)[0])
    _, settings = own_field(open_array("one.npy"), argparse.Namespace())
    parts = settings.data(Path())
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "train": (8, 800, 1, 20),  # eight shifts around the ring
        "validation": (1, 100, 1, 20),
        "test": (1, 100, 1, 20),
    }
    whole = (ring(1, 1000)[0] - 5) / (3 / np.sqrt(2))
    np.testing.assert_allclose(parts["test"][0, :, 0], whole[900:], atol=2e-3)
    assert (settings.size, settings.published) == (20, 99)
    assert settings.change_scale == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        (multirate, "--data few.npy", "at least 17 points on the ring, got shape (6, 60, 16)"),
        (multirate, "--data short.npy", "of 49 time steps, or a single one of 147, got shape (146"),
        (multirate, "--data still.npy", "still.npy must have values that change in time"),
        (multirate, "--data cube.npy", "(trajectories, time, points), or (time, points) of a sin"),
        (multirate, "--data few.npy --system lorenz96", "--system is for solved trajectories, got"),
        (multirate, "--data hole.npy", "got 1 missing values of 7200 in this slice, the first at"),
        (adaptive, "--data hole.npy", "got 1 missing values of 7200 in this slice, the first at"),
        (adaptive, "--data few.npy --dt inf", "--dt must be above 0 and finite, got inf"),
        (adaptive, "--data cube.npy", "(trajectories, time, features), or (time, features) of a"),
        (adaptive, "--data none.npy", "path must be a file or folder that exists, got none.npy"),
        (adaptive, "--dt 1", "--dt is for a file in --data, got the folder data"),
    ],
)
def test_systems_that_do_not_fit_are_one_line(recipe: Any, words: str, message: str, capsys):
    np.save("few.npy", ring(6, 60, 16))
    np.save("short.npy", ring(1, 146)[0])
    np.save("still.npy", np.broadcast_to(ring(6, 1), (6, 60, 20)))
    np.save("cube.npy", ring(6, 60)[..., None])
    hole = ring(6, 60)
    hole[1, 2, 3] = np.nan
    np.save("hole.npy", hole)
    with pytest.raises(SystemExit):
        recipe.main(words.split())
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not Path("runs").exists()


def test_models_are_compared_on_a_sequence_of_a_file(monkeypatch):
    monkeypatch.setattr(sequences, "HIDDEN", 8)
    np.save("own.npy", 3 + 5 * circles(1, 120)[0])
    words = ["--data", "own.npy", "--iterations", "2", "--out", "out"]
    text = sequences.main(words)
    rows = text.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == list(sequences.MODELS)
    assert rows[0].startswith("| own.npy | coupled steppers | ")
    echoes = next(row for row in rows if "echo" in row)
    assert float(echoes.split(" | ")[3]) < 1e-3  # echoes follow a circle
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
        (
            "--data hole.npy --sequences Bach",
            "--sequences is for those made here, got the file hole",
        ),
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


@pytest.mark.parametrize("recipe", ["ocean", "hybrid", "permeability"])
def test_the_folder_of_a_cache_has_its_own_option(recipe: str, capsys: pytest.CaptureFixture):
    def options(*words: str) -> argparse.Namespace:
        if recipe == "permeability":
            return permeability._options(words)
        return drift.parsed(
            words, recipe, "", samples=1, epochs=1, unroll=1, seeds=1, seeds_others=1
        )

    assert options().cache == Path("data")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options("--cache", "solved").cache == Path("solved")
    with pytest.warns(DeprecationWarning, match="--data is now called --cache"):
        assert options("--data", "solved").cache == Path("solved")
    Path("notes").write_text("")
    for name in ("notes", "none.nc"):
        with pytest.raises(SystemExit):
            options("--cache", name)
        said = capsys.readouterr().err
        assert f"--cache must be the folder of a cache, got {name}; files of your own" in said
    with pytest.raises(SystemExit):
        options("--help")
    shown = capsys.readouterr().out
    assert "--cache" in shown
    assert "--data " not in shown
