"""The recipe on ways in which a parameter enters a network runs, resumes and reports."""

import json
import math

import pytest
import torch

from neurenix_ms.recipes.conditioned import command, training
from neurenix_ms.recipes.conditioned.report import table


@pytest.fixture(scope="module")
def fields() -> tuple[torch.Tensor, torch.Tensor]:
    speed = torch.tensor([[0.5], [-1.0]])
    return training.waves(speed, torch.Generator().manual_seed(0))


def test_waves_travel_as_far_as_their_speed_says(fields):
    x, y = fields
    assert x.shape == y.shape == (2, 1, training.NUM_POINTS)
    torch.testing.assert_close(y[0], x[0].roll(3, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(y[1], x[1].roll(-6, -1), atol=1e-5, rtol=0)


def test_no_speed_of_the_test_is_one_of_the_training():
    assert not set(training.SEEN) & set(training.UNSEEN)
    assert min(training.SEEN) < min(training.UNSEEN) < max(training.UNSEEN) < max(training.SEEN)


@pytest.mark.parametrize("way", training.WAYS)
def test_the_speed_enters_in_the_way_that_is_named(way: str, fields):
    model = training.build(way)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    one, other = (torch.full((2, 1), speed) for speed in (0.1, 0.7))
    x = fields[0]
    same = torch.equal(training.predict(model, way, x, one), training.predict(model, way, x, other))
    assert same == (way == "none")


@pytest.mark.slow
def test_one_command_writes_table_and_figure_and_resumes(tmp_path, monkeypatch):
    arguments = ["--iterations", "2", "--seeds", "0", "1", "--out", str(tmp_path)]
    text = command.main(arguments)
    for name in ("condition of every block", "input channel", "not at all"):
        assert f"| {name} |" in text
    assert (tmp_path / "table.md").read_text("utf-8").strip() == text
    assert (tmp_path / "conditioned.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "conditioned.json").read_text("utf-8"))
    assert len(results) == 6
    assert all(math.isfinite(e) for r in results for e in (*r["seen"], *r["unseen"]))
    assert table(results) == text
    with monkeypatch.context() as patch:
        patch.setattr(command, "trained", None)  # nothing is trained again
        assert command.main(arguments) == text
    calls = []
    made = training.trained
    monkeypatch.setattr(command, "trained", lambda *given: calls.append(given) or made(*given))
    command.main([*arguments, "--fresh"])
    assert len(calls) == 6


def test_options_out_of_range_are_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        command.main(["--iterations", "0"])
    assert "--iterations must be at least 1, got 0" in capsys.readouterr().err
