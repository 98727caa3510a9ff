"""The recipes of time-stepping run on small data, resume and report."""

import dataclasses
import json
import sys
import types

import pytest
import torch

from neurenix_ms.recipes.hierarchy import command as hierarchy
from neurenix_ms.recipes.hierarchy import settings as hierarchy_settings
from neurenix_ms.recipes.hierarchy.report import draw, table
from neurenix_ms.recipes.sequences import bach
from neurenix_ms.recipes.sequences import command as sequences
from neurenix_ms.recipes.sequences.bach import sounding


@pytest.fixture
def small(monkeypatch):
    """Few short trajectories; strides to match."""
    for module in (hierarchy, hierarchy_settings):
        monkeypatch.setattr(module, "NUM_STEPS", 80)
        monkeypatch.setattr(module, "STEP_SIZES", [1, 4, 16])
    for name, value in (("NUM_TRAIN", 4), ("NUM_VALIDATION", 2), ("NUM_TEST", 2)):
        monkeypatch.setattr(hierarchy_settings, name, value)
    monkeypatch.setattr(hierarchy_settings, "ROWS_OF_TRAINING", 40)
    settings = hierarchy_settings.SETTINGS
    narrow = dataclasses.replace(settings["cubic"], hidden=[8], batch_size=8)
    monkeypatch.setitem(settings, "cubic", narrow)


def run(tmp_path, *more):
    folders = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    return hierarchy.main(["--system", "cubic", "--iterations", "3", *folders, *more])


def test_one_command_writes_table_and_figure_and_resumes(small, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(hierarchy, "draw", lambda path, result: drawn.append(path.name))
    text = run(tmp_path, "--noise", "0", "0.01")
    assert "| cubic | 0 % |" in text
    assert "| cubic | 1 % |" in text
    assert "| 3.1e-03 | 2.0e-04 | 2.0e-04 |" in text  # what was published
    out = tmp_path / "out"
    assert drawn == ["cubic.png"]
    assert (out / "table.md").read_text().strip() == text
    result = json.loads((out / "cubic_1.json").read_text())
    assert set(result["errors"]) == {"1", "4", "16", "coupled", "hybrid"}
    assert result["errors"]["coupled"] > 0
    monkeypatch.setattr(hierarchy, "trained", None)  # nothing is trained again
    assert run(tmp_path, "--noise", "0", "0.01") == text


def test_seeds_and_smoothed_trajectories_have_rows(small, tmp_path):
    text = run(tmp_path, "--noise", "0.01", "--seeds", "2")
    assert text.count("| cubic | 1 % |") == 1  # the mean of both seeds
    assert "±" in text.splitlines()[2]
    text = run(tmp_path, "--noise", "0.01", "--smooth")
    assert "| cubic | 1 %, smoothed |" in text
    assert "| cubic | 1 % |" in text
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {"cubic_1.json", "cubic_1_seed1.json", "cubic_1_smoothed.json"}
    noisy, smoothed = (
        json.loads((tmp_path / "out" / f"cubic_1{more}.json").read_text())["errors"]["1"]
        for more in ("", "_smoothed")
    )
    assert noisy != smoothed


def test_smoothing_removes_most_of_the_noise():
    times = torch.linspace(0, 6, 300, dtype=torch.float64)
    truth = torch.stack([times.sin(), times.cos()], dim=-1)[None].repeat(20, 1, 1)
    rough, smooth = (hierarchy_settings.measured(truth, 0.02, 1, on) for on in (False, True))
    assert rough.dtype == torch.float32
    assert (smooth - truth).norm() < 0.4 * (rough - truth).norm()


def test_the_picture_shows_every_stride_also_one_that_diverges(tmp_path):
    curves = {"1": [0.1, float("nan")], "4": [0.1, 1e30], "coupled": [0.01] * 2}
    draw(
        tmp_path / "a.png", {"system": "hopf", "dt": 0.01, "curves": curves | {"hybrid": [0.1] * 2}}
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_noise_has_its_size_and_its_seed():
    states = torch.randn(50, 40, 2, dtype=torch.float64) * torch.tensor([1.0, 10.0])
    noise = hierarchy_settings.noisy(states, 0.02, 1) - states
    torch.testing.assert_close(noise.std((0, 1)), 0.02 * states.std((0, 1)), rtol=0.05, atol=0)
    assert torch.equal(hierarchy_settings.noisy(states, 0, 1), states)


def test_a_diverging_stride_is_not_the_best():
    errors = {"1": float("nan"), "4": 2e-3, "16": 1e-2, "coupled": 1e-3, "hybrid": 1e-4}
    result = {"system": "hopf", "noise": 0.02, "errors": errors, "selected": [16, 4]}
    _, _, ours, published = table([result | {"seconds": 60, "iterations": 2000}]).splitlines()
    assert ours.startswith(
        "| hopf | 2 % | diverges | 2.0e-03 (4) | **1.0e-03** | 1.0e-04 | 4, 16 |"
    )
    assert ours.endswith("| 2,000 steps, 1 min |")
    assert "| 9.0e-05 |" in published


def test_networks_of_other_widths_have_a_row(small, tmp_path):
    run(tmp_path)
    text = run(tmp_path, "--hidden", "4", "4")
    assert text.count("| cubic | 0 % |") == 2
    assert "3 steps, 0 min, widths 4, 4 |" in text
    assert (tmp_path / "out" / "cubic_4-4_0.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--horizon", "0"], "--horizon must be at least 1, got 0"),
        (["--hidden", "8", "0"], "--hidden must be at least 1, got 0"),
        (["--noise", "-1"], r"--noise must be at least 0, got -1\.0"),
    ],
)
def test_invalid_options_raise(options, message, capsys):
    with pytest.raises(SystemExit):
        hierarchy.main(options)
    assert message.replace("\\", "") in capsys.readouterr().err


def test_sequences_are_compared_and_kept(tmp_path, monkeypatch):
    t = 0.3 * torch.arange(120, dtype=torch.float64)
    monkeypatch.setattr(sequences, "NUM_SEEN", 90)
    monkeypatch.setattr(sequences, "NUM_LATER", 30)
    monkeypatch.setattr(
        sequences, "SEQUENCES", {"circle": lambda _: torch.stack([t.sin(), t.cos()], dim=1)}
    )
    monkeypatch.setattr(sequences, "HIDDEN", 8)
    argv = ["--iterations", "2", "--out", str(tmp_path)]
    text = sequences.main(argv)
    assert all(kind in text for kind in sequences.MODELS)
    assert "±" not in text
    assert sequences.main(argv) == text
    rows = dict(row.split(" | ")[1:3] for row in text.splitlines()[2:])
    assert float(rows["linear map of the history"]) < 1e-8  # a circle is linear
    assert float(rows["coupled steppers, linear shortcut"]) < 1e-8
    assert float(rows["coupled steppers, linear shortcut, history"]) < 1e-8
    assert float(rows["coupled steppers"]) > 1e-6
    trained = []
    models = {
        kind: lambda x, options: trained.append(options.seed) or (lambda h, n: h[:, :1] + 0 * n)
        for kind in sequences.MODELS
    }
    monkeypatch.setattr(sequences, "MODELS", models)
    text = sequences.main([*argv, "--seeds", "2"])
    assert trained == [1] * len(models)  # seed 0 is stored
    assert text.count("±") == 3 * len(models)


def test_a_file_of_another_format_is_not_read(tmp_path, monkeypatch):
    rows = torch.randn(400, 2)
    monkeypatch.setattr(sequences, "SEQUENCES", {"noise": lambda _: rows})
    monkeypatch.setattr(
        sequences, "MODELS", {"first": lambda x, options: lambda h, n: h[:, :1].expand(-1, n, -1)}
    )
    old = {"iterations": 2, "results": {"noise": {"first": [1.0, 1.0, 1.0, 1.0]}}}
    (tmp_path / "sequences.json").write_text(json.dumps(old))
    text = sequences.main(["--iterations", "2", "--out", str(tmp_path)])
    assert "| noise | first |" in text


def test_keys_sound_for_the_sixteenths_of_their_notes():
    rows = sounding([(0.0, 1.0, (48,)), (0.5, 0.25, (60, 64)), (1.0, 0.5, (60,))])
    assert rows.tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [1, 1, 1],
        [1, 0, 0],
        [0, 1, 0],
        [0, 1, 0],
    ]


def test_the_prelude_is_read_once(tmp_path, monkeypatch):
    notes = [(0.25 * i, 0.25, (60 + i % 8,)) for i in range(40)]
    monkeypatch.setattr(bach, "_notes", lambda: notes)
    first = bach.prelude(tmp_path)
    assert first.shape == (40, 8)
    monkeypatch.setattr(bach, "_notes", None)
    assert torch.equal(bach.prelude(tmp_path), first)


def test_a_missing_music21_is_said_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    monkeypatch.setattr(sequences, "MODELS", None)
    argv = ["--sequences", "Bach", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    with pytest.raises(ImportError, match=r"pip install 'neurenix_ms\[music\]', or leave it out"):
        sequences.main(argv)
    assert not (tmp_path / "out").exists()


def test_a_score_is_read_by_its_offsets(monkeypatch):
    chord = types.SimpleNamespace(
        offset=0.5,
        duration=types.SimpleNamespace(quarterLength=0.25),
        pitches=[types.SimpleNamespace(midi=60), types.SimpleNamespace(midi=67)],
    )
    score = types.SimpleNamespace(flatten=lambda: types.SimpleNamespace(notes=[chord]))
    corpus = types.SimpleNamespace(parse=lambda name: score)
    monkeypatch.setitem(sys.modules, "music21", types.SimpleNamespace(corpus=corpus))
    assert bach._notes() == [(0.5, 0.25, (60, 67))]
