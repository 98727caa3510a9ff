"""Tables of the docs have captions, and labels for screen readers."""

import re

import pytest
from pages import ROOT

from docs_tools.captions import captioned

INCLUDED = re.compile(r'^--8<-- "(docs/assets/\w+\.md)"$', re.MULTILINE)
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_a_caption_labels_the_table_after_it_only():
    page = captioned(
        "<p>Table: Errors in <code>m</code>.</p>\n<table><tr></tr></table><p>Table: of no table</p>"
        "<h2>Speed</h2>\n<table></table>"
    )
    assert '<p class="table-caption" id="table-1">Errors in <code>m</code>.</p>' in page
    assert page.count('aria-labelledby="table-1"') == 1
    assert "<p>Table: of no table</p>" in page
    assert page.endswith('<table aria-label="Speed"></table>')


def test_parameters_are_labelled_by_their_section_and_what_they_are_of():
    page = captioned(
        '<h2 id="a.B"><code>B</code><a class="headerlink" href="#a.B">&para;</a></h2>'
        '<p><span class="doc-section-title">Parameters:</span></p><table></table>'
        '<h3>C &amp; "D"</h3><table></table><table class="highlighttable"></table>'
    )
    assert '<table aria-label="Parameters of B">' in page
    assert '<table aria-label="C &amp; &quot;D&quot;">' in page
    assert '<table class="highlighttable">' in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_of_a_recipe_has_a_caption(page):
    text = page.read_text("utf-8")
    for found in INCLUDED.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n\n")[2]
        assert before.startswith("Table: "), (page.name, found[1])
        assert before.endswith("."), before


def test_tables_of_benchmarks_say_what_their_numbers_are():
    from benchmarks.report import RESULTS, table

    assert "\n\nTable: pooling/forward. Median of a call ±" in table(RESULTS, "pooling/forward")
