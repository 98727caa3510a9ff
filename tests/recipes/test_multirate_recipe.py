"""The recipe of multirate forecasts runs on small data, resumes and reports."""

import dataclasses
import json

import pytest
import torch

from neurenix_ms.recipes.multirate import command, report, scores, settings
from neurenix_ms.timestepping import TimeStepper


def rings(_):
    x = torch.arange(32) * 2 * torch.pi / 32
    t = 0.1 * torch.arange(400)
    rows = torch.stack([(x + t[:, None] + shift).sin() for shift in (0.0, 1.0, 2.0)])
    return settings.standardized(rows, {"validation": rows[:1], "test": rows[1:]}, window=50)


@pytest.fixture
def small(monkeypatch):
    system = dataclasses.replace(settings.SYSTEMS["kuramoto_sivashinsky"], data=rings, published=20)
    monkeypatch.setitem(settings.SYSTEMS, "kuramoto_sivashinsky", system)


def run(tmp_path, *more):
    folders = [f"--{name}={tmp_path / name}" for name in ("out", "runs", "data")]
    return command.main(["--system", "kuramoto_sivashinsky", "--iterations", "2", *folders, *more])


def test_one_command_writes_table_and_figure_and_resumes(small, tmp_path, monkeypatch):
    text = run(tmp_path, "--seeds", "0", "1")
    assert "| Kuramoto-Sivashinsky, end at 20 | single-rate network |" in text
    assert "**multirate levels**" in text
    assert "±" in text
    out = tmp_path / "out"
    assert (out / "multirate.md").read_text().strip() == text
    assert (out / "multirate.png").stat().st_size > 10_000
    kept = json.loads((out / "multirate.json").read_text())["kuramoto_sivashinsky"]
    assert list(kept) == list(settings.VARIANTS)
    assert [one["seed"] for one in kept["multirate"]] == [0, 1]
    monkeypatch.setattr(command, "fit_rollouts", None)  # nothing is trained again
    assert run(tmp_path, "--seeds", "0", "1") == text


def test_all_variants_have_about_as_many_parameters():
    for system in settings.SYSTEMS.values():
        counts = [
            sum(p.numel() for p in settings.build(variant, system).parameters())
            for variant in settings.VARIANTS.values()
        ]
        assert max(counts) < 1.02 * min(counts)


def test_an_exact_stepper_has_no_error_and_another_one_a_horizon():
    class Turn(torch.nn.Module):
        def __init__(self, angle):
            super().__init__()
            self.angle = torch.tensor(angle)

        def forward(self, x):  # the quarter wave behind a sine is its cosine
            turned = self.angle.cos() * x + self.angle.sin() * x.roll(-8, -1)
            return turned - x

    rows = rings(None)["test"]
    exact = scores.measured(TimeStepper(Turn(0.1), 1), rows)
    assert max(exact["errors"]) < 1e-3
    assert min(exact["correlations"]) > 0.999
    assert scores.horizon(exact["correlations"]) == rows.shape[1] - 1
    fast = scores.measured(TimeStepper(Turn(0.2), 1), rows)
    # the correlation is the cosine of the phase: below one half after pi / 3
    assert scores.horizon(fast["correlations"]) == 10
    assert fast["correlations"][4] == pytest.approx(torch.tensor(0.5).cos().item(), abs=1e-3)
    assert fast["errors"][4] == pytest.approx(2 * torch.tensor(0.25).sin().item(), abs=1e-2)


def test_a_long_stride_is_measured_at_its_ends():
    class Shift(torch.nn.Module):
        def forward(self, x):
            return x.roll(-8, -1) - x  # a quarter wave, in four steps of a quarter of it each

    t = torch.pi / 8 * torch.arange(21)
    x = torch.arange(32) * 2 * torch.pi / 32
    rows = (x + t[:, None]).sin()[None, :, None]
    scored = scores.measured(TimeStepper(Shift(), 4), rows)
    assert len(scored["errors"]) == 20
    assert max(scored["errors"]) < 1e-3
    wrong = scores.measured(TimeStepper(Shift(), 2), rows)
    # an eighth of a turn too much in every two steps
    assert wrong["correlations"][2:4] == pytest.approx([0.0, 0.0], abs=1e-3)
    assert scores.horizon(wrong["correlations"]) == 2


def test_a_diverged_forecast_has_no_correlation():
    doubled = TimeStepper(torch.nn.Hardtanh(-1e38, 1e38), 1)
    scored = scores.measured(doubled, 1e37 * rings(None)["test"])
    assert all(value == value for value in [*scored["errors"], *scored["correlations"]])


def test_lorenz_96_conserves_energy_without_forcing_and_damping():
    x = torch.randn(4, 40, dtype=torch.float64)
    nonlinear = settings.lorenz96(x) + x - 8
    assert (x * nonlinear).sum(dim=1).abs().max() < 1e-10
    x = torch.full((1, 40), 8.0)
    assert settings.lorenz96(x).abs().max() == 0


def test_ratios_are_of_equal_seeds():
    def one(seed, steps):
        correlations = [1.0] * steps + [0.0] * (40 - steps)
        return {
            "seed": seed,
            "parameters": 10,
            "seconds": 1,
            "errors": [0.1] * 40,
            "correlations": correlations,
        }

    runs = {"single": [one(0, 10), one(1, 20)], "multirate": [one(1, 30), one(0, 10)]}
    text = report.table({"lorenz96": runs})
    assert "20 ± 14 | 1.25 ± 0.35 |" in text


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
