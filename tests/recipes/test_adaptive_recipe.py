"""The recipe of adaptive strides runs on small data, resumes and reports."""

import dataclasses
import json

import pytest
import torch

from neurenix_ms.recipes.adaptive import command, scores, settings
from neurenix_ms.timestepping import HierarchicalTimeStepper, TimeStepper


def circles(_):
    t = 0.2 * torch.arange(41)
    start = torch.tensor([0.0, 1.0, 2.0])[:, None]
    rows = torch.stack([(t + start).sin(), (t + start).cos()], dim=-1)
    return {"train": rows, "validation": rows[:2], "test": rows[1:]}


@pytest.fixture
def small(monkeypatch):
    system = dataclasses.replace(
        settings.SYSTEMS["fitzhugh_nagumo"],
        data=circles,
        step_sizes=(1, 2, 8),
        hidden=(8,),
        hidden_errors=(4,),
        batch_size=8,
    )
    monkeypatch.setitem(settings.SYSTEMS, "fitzhugh_nagumo", system)
    monkeypatch.setattr(scores, "INTERPOLATIONS", (0.01, 0.1))
    monkeypatch.setattr(scores, "CHANGES", (0.01, 1.0))


def run(tmp_path, *more):
    folders = [f"--{name}={tmp_path / name}" for name in ("out", "runs", "data")]
    return command.main(["--system", "fitzhugh_nagumo", "--iterations", "3", *folders, *more])


def test_one_command_writes_table_and_figure_and_resumes(small, tmp_path, monkeypatch):
    text = run(tmp_path, "--seeds", "0", "1")
    assert "| FitzHugh-Nagumo | most accurate single stride |" in text
    assert "**adaptive by predicted error**" in text
    assert "±" in text
    out = tmp_path / "out"
    assert (out / "adaptive.md").read_text().strip() == text
    assert (out / "adaptive.png").stat().st_size > 10_000
    kept = json.loads((out / "adaptive.json").read_text())["fitzhugh_nagumo"]
    assert [run["seed"] for run in kept] == [0, 1]
    monkeypatch.setattr(command, "trained", None)  # nothing is trained again
    assert run(tmp_path, "--seeds", "0", "1") == text


class Doubling(torch.nn.Module):
    def forward(self, x):
        return x


def test_the_published_rule_takes_the_longest_stride_with_a_small_change():
    steppers = [TimeStepper(torch.nn.Tanh(), 2), TimeStepper(Doubling(), 4)]
    hierarchy = HierarchicalTimeStepper(steppers)
    x0 = torch.tensor([[2.0], [4.0]])  # mean squared changes: 10 over 4 steps, about 1 over 2
    long = scores.by_change(hierarchy, 10.5)(x0, 4)
    torch.testing.assert_close(long[:, -1], 2 * x0)
    torch.testing.assert_close(long[:, 1], 1.5 * x0)
    short = scores.by_change(hierarchy, 1.0)(x0, 3)
    torch.testing.assert_close(short[:, 1], x0 + x0.tanh())
    assert short.shape == (2, 3, 1)


def test_calls_and_costs_are_counted():
    steppers = [TimeStepper(torch.nn.Linear(2, 2), s) for s in (1, 4)]
    hierarchy = HierarchicalTimeStepper(steppers)
    rows = circles(None)["test"]
    ways = [way for way in scores.fixed_ways(hierarchy) if way.kind != "change"]
    by_strides = {tuple(way.label): way for way in ways}
    for strides, calls in (((1,), 40), ((4,), 10), ((4, 1), 40)):
        result = scores.measured(by_strides[strides], rows, torch.ones(2))
        assert result["calls"] == result["cost"] == calls
    stepper = steppers[0]
    half = torch.nn.Linear(1, 1)  # 2 parameters of 6
    way = scores.Way("adaptive", [], lambda x, n: _called(stepper, half, x, n), [stepper, half])
    result = scores.measured(way, rows, torch.ones(2))
    assert result["calls"] == 1
    assert result["cost"] == pytest.approx(1 + 1 / 3)


def _called(stepper, small, x, num_steps):
    small(x[:, :1])
    return stepper(x)[:, None].expand(-1, num_steps, -1)


def row(kind, error, cost):
    return {"kind": kind, "validation": {"error": error, "cost": cost}}


def test_rows_are_chosen_by_the_validation():
    rows = [
        row("single", 1.0, 10.0),
        row("coupled", 1.04, 8.0),
        row("coupled", 1.03, 9.0),
        row("coupled", 1.2, 4.0),
        row("change", 2.0, 3.0),
        row("change", 1.5, 30.0),
        row("adaptive", 1.02, 6.0),
        row("adaptive", 1.01, 7.0),
        row("adaptive", 3.0, 8.0),
    ]
    assert scores.chosen(rows) == {
        "best single": 0,
        "best coupled": 2,
        "cheapest fixed": 1,
        "change": 5,
        "adaptive": 6,
    }
    assert sorted(scores.front(rows)) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--seeds", "-1"], "--seeds must be at least 0, got -1"),
    ],
    ids=["iterations", "seeds"],
)
def test_invalid_options_raise(options, message, capsys):
    with pytest.raises(SystemExit):
        command.main(options)
    assert message in capsys.readouterr().err
