"""The comparison of decoders runs on small data and resumes; its stored table is that of its results."""

import json

import pytest
import torch

from docs_tools.source import ROOT
from neurenix_ms.recipes.decoders import command
from neurenix_ms.recipes.decoders.models import MODELS, num_parameters
from neurenix_ms.recipes.decoders.report import table
from neurenix_ms.recipes.reporting import scatter

ASSETS = ROOT / "docs" / "assets"


@pytest.fixture
def small(monkeypatch):
    """Few scenes."""
    monkeypatch.setattr(command, "NUM_TEST", 8)
    monkeypatch.setattr(command, "NUM_TIMED", 2)


def run(tmp_path, *more: str) -> str:
    chosen = ["--models", "UNetDecoder", "NestedUNetDecoder", "--iterations", "2", "--samples", "4"]
    return command.main([*chosen, "--out", str(tmp_path), *more])


def test_one_command_writes_a_table_and_resumes(small, tmp_path, monkeypatch):
    text = run(tmp_path, "--seeds", "0", "1")
    assert text == (tmp_path / "decoders.md").read_text().rstrip()
    assert text.count("±") == 6
    monkeypatch.setattr(command, "trained", None)  # nothing is trained again
    assert run(tmp_path, "--seeds", "0", "1") == text


def test_scenes_hold_discs_of_all_sizes_and_depend_on_the_seed():
    images, masks, radii = command.scenes(20, 3)
    assert images.shape == masks.shape == radii.shape == (20, 1, 64, 64)
    assert torch.equal(masks, (radii > 0).float())
    present = radii[radii > 0]
    assert present.min() < command.SMALL < command.LARGE < present.max()
    assert torch.equal(images, command.scenes(20, 3)[0])
    assert not torch.equal(images, command.scenes(20, 4)[0])


def test_a_network_that_knows_the_mask_scores_one(monkeypatch):
    _, masks, radii = command.scenes(8, 0)
    monkeypatch.setattr(command, "scenes", lambda count, seed: (masks - 0.5, masks, radii))
    assert command.scores(torch.nn.Identity(), 0) == {"iou": 1.0, "small": 1.0, "large": 1.0}


def test_the_stored_table_is_that_of_the_stored_results():
    stored = json.loads((ASSETS / "decoders.json").read_text())["results"]
    assert table(stored) == (ASSETS / "decoders.md").read_text().rstrip()
    assert {(r["model"], r["seed"]) for r in stored} == {(m, s) for m in MODELS for s in range(3)}
    counts = {r["model"]: r["parameters"] for r in stored}
    assert max(counts.values()) <= 1.15 * min(counts.values())
    for result in stored:
        if result["seed"] == 0:
            model = MODELS[result["model"]](result["width"])
            assert num_parameters(model) == result["parameters"]


def test_of_one_value_there_is_no_scatter():
    assert scatter([0.25]) == "0.250"
