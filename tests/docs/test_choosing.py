"""Tables of the page "How to choose" agree with the stored results and the code."""

import json
from pathlib import Path

import pytest

from benchmarks.report import RESULTS
from docs_tools import choosing
from neurenix_ms import list_models
from neurenix_ms.multiscale.fusion import METHODS


@pytest.fixture
def results() -> dict:
    return json.loads(RESULTS.read_text("utf-8"))


def stored(results: dict, folder: Path) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(results), "utf-8")
    return path


def row(table: str, name: str) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return next(cells for cells in rows if name in cells[0])


def test_every_fusion_method_is_described():
    named = {name for name in choosing.FUSIONS if " " not in name}
    assert named == set(METHODS) - {"avg"}  # another spelling of "mean"
    for name in choosing.FUSIONS:
        assert len(row(choosing.fusions(), name)[1]) > 10


def test_what_is_shown_is_what_was_stored(results: dict, tmp_path: Path):
    case = next(
        case
        for case in results["benchmarks"]
        if case["group"] == "fusion/forward"
        and case["params"] == {"method": "sum", "size": 224, "variant": "ours"}
    )
    case["stats"]["median"] = 3.0
    case["extra_info"]["params"] = 1234
    cells = row(choosing.fusions(stored(results, tmp_path)), "sum")
    assert "3 s" in cells
    assert "1,234" in cells


def test_memory_options_are_compared_with_paired_times(results: dict, tmp_path: Path):
    for case in results["benchmarks"]:
        if case["group"] == "memory/checkpointing" and case["params"]["variant"] != "plain":
            case["extra_info"]["time_ratio"] = 1.5
    table = choosing.memory(stored(results, tmp_path))
    assert row(table, "plain")[3:] == ["1.00x"] * 3
    for way in ("ours", "ours, checkpointing", "torch.utils.checkpoint"):
        share, time, _ = row(table, way)[3:]
        assert time == "1.50x"
        assert 0.5 < float(share.rstrip("x")) <= 1


def test_every_measured_method_is_described():
    for table in (choosing.fusions, choosing.poolings, choosing.memory):
        assert "|  |" not in table()


def test_new_groups_methods_and_settings_do_no_harm(results: dict, tmp_path: Path):
    old = next(case for case in results["benchmarks"] if case["group"] == "fusion/forward")
    new = {**old, "params": {"method": "median", "size": 224, "variant": "ours", "dims": 3}}
    results["benchmarks"] += [{**old, "group": "of another kind", "params": {"a": 1}}, new]
    path = stored(results, tmp_path)
    assert "median" in choosing.fusions(path)
    for table in (choosing.poolings, choosing.memory):
        assert table(path) == table()


def test_a_group_that_is_gone_is_named(results: dict, tmp_path: Path):
    kept = [case for case in results["benchmarks"] if case["group"] == "pooling/forward"]
    path = stored({**results, "benchmarks": kept}, tmp_path)
    with pytest.raises(ValueError, match=r"one of \['pooling/forward'\], got 'fusion/forward'"):
        choosing.fusions(path)


def test_separable_necks_cost_least():
    table = choosing.necks()
    flops = {name: row(table, name)[2] for name in choosing.NECKS}
    assert flops["BidirectionalFusion"] == "85.0 M"
    assert len(set(flops.values())) == len(flops)


@pytest.mark.slow
def test_every_decoder_is_counted():
    cells = {name: row(choosing.decoders(), name)[2:] for name in choosing.DECODERS}
    assert len(cells) == 5
    assert all("-" not in counted for counted in cells.values())


def test_costs_of_scales_are_proportional_to_pixels():
    quarter, eighth = row(choosing.scales(), "[1.0, 0.5]")[2:]
    assert (quarter, eighth) == ("1.25x", "1.12x")


@pytest.mark.slow
def test_a_level_doubles_the_receptive_field():
    table = choosing.levels([1, 1, 1])
    seen = [int(row(table, str(level))[1].split()[0]) for level in (1, 2, 3)]
    assert seen[1] >= 2 * seen[0]
    assert seen[2] >= 2 * seen[1]


@pytest.mark.slow
def test_norms_differ_in_what_they_look_at():
    table = choosing.norms()
    assert row(table, "batch")[3] == "yes"
    assert [row(table, name)[3] for name in ("group", "instance", "None")] == ["no"] * 3
    passes = {name: int(row(table, name)[4]) for name in ("batch", "group", "instance", "None")}
    assert passes["batch"] == passes["None"] == 0 < passes["group"] == passes["instance"]


def test_tiles_are_equal_and_windows_are_not():
    table = choosing.tiles()
    assert float(row(table, "windows blended")[1]) > 1e-2 > 1e-5 > float(row(table, "tiles")[1])


def test_every_preset_is_in_the_table():
    table = choosing.presets()
    assert row(table, "`unet_milesial`")[1] == "`UNet`"
    assert len(table.splitlines()) == 2 + len(list_models())
