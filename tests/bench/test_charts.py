"""Tables and charts of runs: growth, what is left out, and which way no other one beats."""

import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from neurenix_ms.bench import charts
from neurenix_ms.bench.page import as_page
from neurenix_ms.bench.results import Report
from neurenix_ms.bench.tables import as_csv, as_markdown, as_text, exponent

PROGRAM = shutil.which("chromium")
TAG = "{http://www.w3.org/2000/svg}"


def case(variant: str, size: int, time: float | None, peak: int, **extra: Any) -> dict[str, Any]:
    measured = {"tensor_peak_bytes": peak, "flops": size**2, "reference": "slow", **extra}
    return {
        "group": "a <group>",
        "name": f"test_it[{size}-{variant}]",
        "params": {"size": size, "variant": variant},
        "stats": {"median": time},
        "extra_info": measured,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    cases = [case("slow", n, n**2 / 1e3, n**3) for n in (10, 20, 40)]
    cases += [
        case("fast", n, n / 1e3, n**2, error=1e-5, uncounted={"_fft": 2}) for n in (10, 20, 40)
    ]
    cases += [case("rough", 40, 1e-3, 900, error=1e-2), case("bad", 40, 9.0, 10**6, error=1e-1)]
    return {"machine_info": {"cpu": {"brand_raw": "A & B"}}, "benchmarks": cases}


def test_the_reference_is_the_one_that_is_named(content: dict[str, Any]):
    rows = Report(content).rows("a <group>")
    assert [row.variant for row in rows if row.is_baseline] == ["slow"] * 3
    assert rows[3].ratio("time") == pytest.approx(0.1)
    assert rows[3].ratio("error") is None


def test_exponents_are_those_of_powers(content: dict[str, Any]):
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 1], [1, 2]) is None
    assert exponent([1, 2], [0, 2]) is None
    assert exponent([0, 2], [1, 2]) is None
    text = as_markdown(Report(content))
    assert "| slow | size | 10 to 40 | 2.00 | 3.00 | 2.00 |" in text
    assert "| fast | size | 10 to 40 | 1.00 | 2.00 | 2.00 |" in text
    assert "rough | size" not in text


def test_what_is_in_no_count_is_listed_by_way(content: dict[str, Any]):
    assert "Not in the FLOPs: fast: \\_fft." in as_markdown(Report(content))
    assert "Not in the FLOPs: fast: _fft." in as_text(content)
    assert as_csv(Report(content)).splitlines()[4].endswith(",_fft")


def test_a_run_without_times_is_shown(content: dict[str, Any]):
    for entry in content["benchmarks"]:
        entry["stats"]["median"] = None
    assert "median time" not in as_markdown(Report(content))
    assert "median time" not in as_page(Report(content))


def test_growth_is_a_line_per_way(content: dict[str, Any]):
    rows = Report(content).rows("a <group>")
    drawing = charts.growth(rows, "a <group>", "size", "time")
    assert drawing is not None
    image = ElementTree.fromstring(drawing)[0]
    words = [text.text for text in image.iter(f"{TAG}text")]
    assert "slow: exponent 2.00" in words
    assert "fast: exponent 1.00" in words
    lines = [line.attrib["points"].split() for line in image.iter(f"{TAG}polyline")]
    assert [len(line) for line in lines] == [3, 3]
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in p.split(",")] for p in lines[0])
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert charts.growth(rows[:2], "a", "size", "time") is None


def test_the_front_is_what_no_other_way_beats(content: dict[str, Any]):
    rows = Report(content).rows("a <group>")
    drawing = charts.pareto(rows, "a <group>", "time", "error")
    assert drawing is not None
    words = [text.text for text in ElementTree.fromstring(drawing)[0].iter(f"{TAG}text")]
    assert [w for w in words if w and "best" in w] == [
        "1  best: fast · size 40",
        "2  best: rough · size 40",
    ]
    assert any(w and w.startswith("3  bad") for w in words)
    assert charts.pareto(rows[:3], "a", "time", "error") is None
    assert charts.front([(1, 1), (1, 1), (2, 1)]) == [(1, 1)]


def test_a_page_holds_every_case_and_nothing_from_elsewhere(content: dict[str, Any]):
    page = as_page(Report(content), "A <run>")
    assert "<h1>A &lt;run&gt;</h1>" in page
    assert "A &amp; B" in page
    assert page.count("<tr>") == 9
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "<script" not in page


WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """[...document.querySelectorAll('svg text')].filter(t => {
    const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1
        || a.bottom > b.bottom + 1 }).map(t => t.textContent)"""
INK = "getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor"


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium")
def test_the_page_in_a_browser(content: dict[str, Any], tmp_path: Path):
    pytest.importorskip("playwright")
    from browser import chromium

    file = tmp_path / "run.html"
    file.write_text(as_page(Report(content)), encoding="utf-8")
    inks = {}
    with chromium(str(PROGRAM)) as browser:
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                browser.resize(width)
                browser.open(file.as_uri(), scheme)
                assert browser.run(WIDER) == 0
                assert browser.run(OUTSIDE) == []
                assert browser.errors == []
                asked = [url for url in browser.requests if not url.startswith("data:")]
                assert asked == [file.as_uri()]
                assert browser.run("document.querySelectorAll('svg').length") == 7
            inks[scheme] = browser.run(INK)
    assert inks["light"] != inks["dark"]
