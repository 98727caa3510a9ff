"""Bytes and operations that are stored, and what is said where they have grown."""

from pathlib import Path

import pytest

from neurenix_ms.bench import stored

STORED = {"test_x::a": {"tensor_peak_bytes": 1000, "flops": 2000}}


def test_a_figure_may_grow_by_one_per_cent_and_no_more():
    assert stored.complaint("test_x::a", {"tensor_peak_bytes": 1010, "flops": 20}, STORED) is None
    grown = stored.complaint("test_x::a", {"tensor_peak_bytes": 1011, "flops": 2021}, STORED)
    assert grown is not None
    assert "tensor_peak_bytes was 1,000 and is 1,011 and flops was 2,000 and is 2,021" in grown


def test_a_case_that_is_not_stored_is_a_complaint():
    words = stored.complaint("test_x::b", STORED["test_x::a"], STORED)
    assert words == "test_x::b has no stored figures; store them with pytest --bench-store"


def test_storing_keeps_other_cases(tmp_path: Path):
    path = tmp_path / "new" / "bench.json"
    stored.store(STORED, path)
    stored.store({"test_x::b": {"tensor_peak_bytes": 1, "flops": 0}}, path)
    assert set(stored.load(path)) == {"test_x::a", "test_x::b"}
    assert stored.load(tmp_path / "none.json") == {}


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "bench.json"
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bench.json must be a JSON file of .*, got .* decode"):
        stored.load(path)
    path.write_text('{"a": {"flops": 1}}')
    with pytest.raises(ValueError, match="must hold tensor_peak_bytes and flops of every case"):
        stored.load(path)
    for value in ('"x"', "null", "-1", "true", "1.5", "[]"):
        path.write_text(f'{{"a": {{"flops": {value}, "tensor_peak_bytes": 1}}}}')
        with pytest.raises(ValueError, match="flops of a must be an integer of at least 0, got"):
            stored.load(path)
