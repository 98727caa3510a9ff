"""Tables and charts of benchmark results show the right numbers."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.report import bars, table

MACHINE = {
    "cpu": {"brand_raw": "Some CPU", "count": 2},
    "torch": "2.15.0",
    "threads": 1,
    "mkldnn": True,
    "python_version": "3.11.7",
}


def case(
    group: str, params: dict[str, Any] | None, median: float, /, **extra: Any
) -> dict[str, Any]:
    name = "test_case" if params is None else f"test_case[{params}]"
    stats = {"median": median, "mean": 9.0}
    return {"group": group, "name": name, "params": params, "stats": stats, "extra_info": extra}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "benchmarks.json"
    cases = [
        case(
            "pool/forward", {"size": 64, "variant": "plain"}, 2e-3, tensor_peak_bytes=2**20, flops=0
        ),
        case(
            "pool/forward", {"size": 64, "variant": "ours"}, 1e-3, tensor_peak_bytes=2**19, flops=0
        ),
        case("pool/forward", {"size": 128, "variant": "ours"}, 1.5, tensor_peak_bytes=None),
        case("tiles_of|maps", None, 2.5e-5, items_per_s=40000.0, flops=1.55e9, params=17267393),
    ]
    path.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": cases}))
    return path


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_table_names_the_machine(results: Path):
    first = table(results, "pool/forward").splitlines()[0]
    assert (
        first == "Measured on: Some CPU, 2 cores, torch 2.15.0, 1 thread, oneDNN on, Python 3.11.7."
    )


def test_a_row_is_compared_with_the_plain_variant_of_the_same_size(results: Path):
    head, rule, *rows = cells(table(results, "pool/forward"))
    peak, flops = "peak of live tensors", "conv and matmul FLOPs"
    assert head == ["size", "variant", "median time", peak, flops]
    assert len(rule) == len(head)
    assert rows[0] == ["64", "plain", "2 ms", "1 MiB", "0"]
    assert rows[1] == ["64", "ours", "1 ms (0.50x)", "512 KiB (0.50x)", "0"]
    assert rows[2] == ["128", "ours", "1.50 s", "-", "-"]


def test_all_groups_are_shown_under_their_names(results: Path):
    text = table(results)
    assert re.findall("^### (.*)$", text, re.MULTILINE) == ["pool/forward", "tiles_of|maps"]
    assert cells(text)[-1] == ["test\\_case", "25 µs", "40,000", "1.55 G", "17,267,393"]


def test_an_unknown_group_is_named(results: Path):
    with pytest.raises(ValueError, match=r"group must be one of \['pool/forward', .*got 'pol'"):
        table(results, "pol")
    with pytest.raises(ValueError, match=r"group must be one of .*got 'pol'"):
        bars(results, "pol", "time")


def test_bars_are_as_long_as_their_values(results: Path):
    drawing = bars(results, "pool/forward", "tensor_peak_bytes").splitlines()[-1]
    image = ElementTree.fromstring(drawing)[0]
    tag = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in image.iter(f"{tag}rect")]
    assert widths == [360.0, 180.0]
    words = [text.text for text in image.iter(f"{tag}text")]
    assert words == ["plain · size 64", "1 MiB", "ours · size 64", "512 KiB"]
    assert image.find(f"{tag}title").text == "pool/forward: peak of live tensors"


def test_bars_follow_the_theme(results: Path):
    drawing = bars(results, "pool/forward", "time")
    assert "var(--md-primary-fg-color)" in drawing
    assert set(re.findall(r"(?:fill|stroke)=\"([^\"]*)\"", drawing)) <= {
        "var(--md-primary-fg-color)",
        "var(--md-default-fg-color)",
    }


def test_values_of_zero_are_bars_and_missing_ones_are_not(results: Path):
    assert bars(results, "pool/forward", "flops").count("<rect") == 2
    with pytest.raises(ValueError, match=r"group .tiles_of\|maps. has no value of 'shape'"):
        bars(results, "tiles_of|maps", "shape")
