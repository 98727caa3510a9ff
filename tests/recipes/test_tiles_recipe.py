"""The recipe of exact tiles: errors, operations and memory of every way, stored once."""

import json
from pathlib import Path

import pytest

from neurenix_ms.recipes.tiles import command
from neurenix_ms.recipes.tiles.command import main, measure_volume

pytest.importorskip("monai")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_tiles_are_equal_and_blended_windows_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(command, "SIZE", 128)
    monkeypatch.setattr(command, "TILE", 64)
    main(["--out", str(tmp_path), "--steps", "2"])
    found = json.loads((tmp_path / "tiles.json").read_text())
    whole, blended, tiles, deep = found["image"].values()
    assert whole["error"] == 0
    assert max(tiles["error"], deep["error"]) < 1e-5 < 1e-3 < blended["error"]
    assert whole["gflop"] < deep["gflop"] < tiles["gflop"]
    assert tiles["mib"] < 0.95 * whole["mib"]
    table = (tmp_path / "tiles.md").read_text()
    assert table in capsys.readouterr().out
    assert len(table.strip().splitlines()) == 2 + 4
    assert (tmp_path / "tiles.png").stat().st_size > 10_000
    monkeypatch.delattr(command, "compare_ways")  # what is finished is not repeated
    main(["--out", str(tmp_path), "--steps", "2"])
    assert json.loads((tmp_path / "tiles.json").read_text()) == found


@pytest.mark.slow
def test_a_volume_in_tiles_takes_less_memory():
    found = measure_volume(96)
    assert found["mib"] < 0.8 * found["whole_mib"]
    assert 1 < found["flops"] < 4
