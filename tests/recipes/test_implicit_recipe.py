"""The implicit recipe trains, resumes, prunes, compacts and reports on small data."""

import dataclasses
import json

import pytest
import torch

from neurenix_ms.datasets import travelling_wave
from neurenix_ms.implicit import NIF, MultiScaleNIF, Normalizer, sparsity
from neurenix_ms.recipes.implicit import cases as implicit_cases
from neurenix_ms.recipes.implicit import command as implicit
from neurenix_ms.recipes.implicit import densified
from neurenix_ms.recipes.implicit.training import OnGrid, Rows, relative_error, train


def data():
    wave = travelling_wave(num_times=4, num_points=30)
    return tuple(
        value.float() for value in (wave["t"][:, None], wave["x"][:, None], wave["u"][..., None])
    )


def field(seed=0):
    torch.manual_seed(seed)
    model = MultiScaleNIF(1, 1, shape_width=8, parameter_width=8, shape_depth=1)
    return Normalizer(model).fit(*data())


@pytest.mark.slow
def test_training_lowers_the_error_and_a_second_go_takes_it_from_the_checkpoints(tmp_path):
    model = field()
    before = relative_error(model, *data())
    options = {"steps": 200, "iterations": 50, "progress": False}
    error, seconds = train(model, *data(), tmp_path, **options)
    assert error < 0.9 * before
    again = field(seed=1)
    same, known = train(again, *data(), tmp_path, **options)
    assert same == error
    assert 0.5 * seconds < known < 1.5 * seconds  # that of the first run
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_the_last_digits_are_trained_too(tmp_path):
    model = field().double()
    p, x, _ = (value.double() for value in data())
    u = model.forward_grid(p, x).detach()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1e-5 * torch.randn_like(value))
    before = relative_error(model, p, x, u)
    options = {"steps": 0, "iterations": 100, "progress": False}
    assert train(model, p, x, u, tmp_path, **options)[0] < 5e-3 * before


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, stopped, resumed = field(), field(), field(seed=3)
    options = {"iterations": 0, "progress": False}
    expected, _ = train(whole, *data(), tmp_path / "whole", steps=200, **options)

    class StoppedError(Exception):
        pass

    calls = iter(range(150))

    def stop(*_):
        if next(calls, None) is None:
            raise StoppedError

    handle = stopped.model.parameter_net.register_forward_hook(stop)
    with pytest.raises(StoppedError):
        train(stopped, *data(), tmp_path / "stopped", steps=200, **options)
    handle.remove()
    assert train(resumed, *data(), tmp_path / "stopped", steps=200, **options)[0] == expected


@pytest.mark.parametrize(("which", "name"), list(enumerate("pxu")))
def test_nan_is_reported_before_anything_is_trained(which, name, tmp_path):
    values = [value.clone() for value in data()]
    values[which].view(-1)[2] = torch.nan
    with pytest.raises(ValueError, match=f"{name} must be finite, got 1 of .* the first nan"):
        train(field(), *values, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_every_row_comes_once_before_any_comes_again():
    rows = Rows(7, 17, seed=1)
    first = list(rows)
    assert len(first) == len(rows) == 17
    assert sorted(first[:7]) == sorted(first[7:14]) == list(range(7))
    assert list(rows) == first
    rows.set_epoch(1)
    assert list(rows) != first


def test_a_field_on_a_mesh_is_a_function_of_parameters():
    model, x = NIF(1, 2), torch.rand(5, 2)
    p = torch.rand(3, 1)
    assert torch.equal(OnGrid(model, x)(p), model.forward_grid(p, x))


@pytest.mark.slow
def test_the_wave_case_writes_its_results_and_draws_them_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        implicit_cases, "wave_field", lambda: NIF(1, 1, shape_width=10, parameter_width=6)
    )
    paths = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    text = implicit.main(["wave", "--steps", "100", "--iterations", "0", *paths])
    assert "removed" in text
    result = json.loads((tmp_path / "out" / "implicit_wave.json").read_text())
    assert [len(rounds) for rounds in result["rounds"].values()] == [6, 6, 6]
    left = [one["widths"] for one in result["rounds"]["l2 by layer"]]
    assert left == [[n, n, n] for n in (10, 5, 4, 3, 2, 1)]
    left = [sum(one["widths"]) for one in result["rounds"]["contribution"]]
    assert left == [30, 15, 12, 9, 6, 3]
    assert result["costs"][3]["parameters"] < result["costs"][0]["parameters"]
    assert 0.5 <= result["fields"]["sparsity"] <= 0.9
    for ending in ("md", "png"):
        (tmp_path / "out" / f"implicit_wave.{ending}").unlink()
    monkeypatch.setattr(implicit_cases, "train", None)  # nothing is trained again
    assert implicit.main(["wave", *paths]) == text
    assert (tmp_path / "out" / "implicit_wave.png").stat().st_size > 1000
    assert sparsity(field()) == 0


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--steps must be at least 100, got 10", ["--steps", "10"]),
        ("--iterations must be a multiple of 50, got 7", ["--iterations", "7"]),
    ],
)
def test_options_out_of_range_raise(words, options, capsys):
    with pytest.raises(SystemExit):
        implicit.main(["wave", *options])
    assert words in capsys.readouterr().err


def test_dense_small_pruned_and_densified_fields_get_equal_training(tmp_path, monkeypatch):
    trained = []

    def train(model, p, x, u, folder, *, steps, iterations, **_):
        trained.append((folder.name, steps, iterations))
        return 0.5, 1.0

    monkeypatch.setattr(densified, "train", train)
    case = dataclasses.replace(densified.DENSIFIED["wave"], width=40, fewer=2, iterations=400)
    monkeypatch.setattr(densified, "DENSIFIED", {"wave": case})
    folders = [f"--{name}={tmp_path}" for name in ("out", "runs", "data")]
    text = implicit.main(["densified", "--seeds", "3", "4", *folders])
    assert "| traveling wave | dense | 40, 40, 40 |" in text
    assert text.count("5.0e-01 ± 0.0e+00") == 4
    assert trained[:6] == [
        ("dense", 800, 400),
        ("small", 800, 400),
        ("half", 400, 200),
        ("pruned", 400, 200),
        ("narrow", 200, 100),
        ("densified", 200, 100),
    ]
    models = json.loads((tmp_path / "implicit_densified.json").read_text())["wave"][0]["models"]
    most = 0.4 * models["dense"]["parameters"]
    assert models["small"]["parameters"] == models["pruned"]["parameters"]
    assert all(0.7 * most < models[name]["parameters"] <= most for name in ("small", "densified"))
    assert models["densified"]["widths"][0] > models["densified"]["widths"][1]
