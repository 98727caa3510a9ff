"""The recipe of corrected advection: its steps, its data, and that it runs and resumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from docs_tools.source import ROOT
from neurenix_ms.conservation import total_mass
from neurenix_ms.datasets import DriftDensity
from neurenix_ms.recipes.hybrid import command as hybrid
from neurenix_ms.recipes.hybrid.models import (
    FIELDS,
    DriftAdvection,
    DriftNetwork,
    HybridDrift,
    carried,
    images_of,
)
from neurenix_ms.recipes.hybrid.report import table_of
from neurenix_ms.recipes.ocean.models import Unrolled
from neurenix_ms.recipes.ocean.training import NUM_MIRRORS, DriftWindows

ASSETS = ROOT / "docs" / "assets"
SMALL = [
    *("--samples", "7", "--held-out", "1", "--size", "16", "--steps", "3", "--particles", "200"),
    *("--epochs", "1", "--unroll", "2", "--features", "4", "4", "--seeds", "2", "--quiet"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the samples that all tests here use."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(data: Path) -> list[dict[str, torch.Tensor]]:
    made = DriftDensity(data, 2, 16, 3, num_particles=200, land=3, progress=False)
    return [made[i] for i in range(2)]


def inputs(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    density, fields = images_of(samples[0])
    return torch.cat([density[:1], fields[0]])[None]


def steps() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    made = {
        "advection": DriftAdvection(16),
        "flux": DriftAdvection(16, "flux", 24),
        "network": DriftNetwork((4, 4)),
        "hybrid": HybridDrift(16, (4, 4)),
    }
    torch.nn.init.normal_(made["hybrid"].unet.head.conv.weight)
    return made


def test_every_step_conserves_mass_and_leaves_land_empty(samples):
    x = inputs(samples)
    for name, step in {**steps(), "carried": carried}.items():
        after = step(x)
        torch.testing.assert_close(total_mass(after), total_mass(x[:, :1]), msg=name)
        assert (after >= 0).all(), name
        assert (after[x[:, -1:] == 0] == 0).all(), name


def test_the_hybrid_starts_as_advection(samples):
    x = inputs(samples)
    model = HybridDrift(16, (4, 4))
    torch.testing.assert_close(model(x), DriftAdvection(16)(x))


def test_windows_move_by_their_currents_in_every_variant(samples):
    windows = DriftWindows(samples, 2, images_of)
    assert len(windows) == NUM_MIRRORS * 2 * 2
    model = Unrolled(DriftAdvection(16), FIELDS)
    errors = []
    for i in range(0, len(windows), 3):
        x, truth = windows[i]
        assert x.shape == (1 + 2 * FIELDS, 16, 16)
        predicted = model(x[None])[0]
        still = x[:1].expand_as(truth)
        errors.append(float((predicted - truth).norm() / (still - truth).norm()))
    assert max(errors) < 0.8  # a wrong sign or axis gives more than 1


def test_the_recipe_runs_and_resumes(data: Path, tmp_path: Path, capsys):
    argv = [*SMALL, "--out", str(tmp_path), "--cache", str(data)]
    table = hybrid.main(argv)
    first = json.loads((tmp_path / "hybrid.json").read_text())
    assert "| hybrid | " in table
    assert (tmp_path / "hybrid.md").read_text().strip() == table
    for name in ("hybrid.png", "hybrid_errors.png"):
        assert Image.open(tmp_path / name).size[0] > 800
    with Image.open(tmp_path / "hybrid.gif") as animation:
        assert getattr(animation, "n_frames", 1) == first["options"]["steps"] + 1
    for way in first["ways"].values():
        for run in way["runs"]:
            for kind in hybrid.KINDS:
                assert min(run[kind]["least"]) >= 0
                assert max(run[kind]["mass off"]) < 1e-4
    checkpoint = tmp_path / "runs" / "hybrid_0" / "last.ckpt"
    written = checkpoint.stat().st_mtime_ns
    hybrid.main(argv)
    again = json.loads((tmp_path / "hybrid.json").read_text())
    assert checkpoint.stat().st_mtime_ns == written  # it was not trained again
    assert (
        again["ways"]["hybrid"]["runs"][0]["eddies"] == first["ways"]["hybrid"]["runs"][0]["eddies"]
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--unroll 4", "--unroll must be at most --steps 3"),
        ("--size 18", "--size must be a multiple"),
    ],
)
def test_options_that_do_not_fit_are_refused(option, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        hybrid.main([*SMALL, *option.split(), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_the_stored_table_is_that_of_the_stored_results():
    stored = json.loads((ASSETS / "hybrid.json").read_text())
    assert table_of(stored) == (ASSETS / "hybrid.md").read_text().rstrip()
    assert [len(way["runs"]) for way in stored["ways"].values()] == [1, 1, 1, 3, 1]


def test_what_the_page_says_holds_in_the_stored_results():
    ways = json.loads((ASSETS / "hybrid.json").read_text())["ways"]
    points = ways["advection of point values"]["runs"][0]
    for run in ways["hybrid"]["runs"]:
        for kind in ("eddies", "land", "sink", "reversed", "source"):
            # the least density of a run, one number or one per step
            assert np.min(run[kind]["least"]) >= 0
            assert max(run[kind]["mass off"]) < 1e-6
            ratios = [run[kind]["error"][i] / points[kind]["error"][i] for i in (3, 11)]
            assert max(ratios) < (0.81 if kind != "source" else 0.91)
