"""The stored results of conditioned networks are those of the stored table, and as the page says."""

import json
from statistics import mean, stdev

from docs_tools.source import ROOT
from neurenix_ms.recipes.conditioned.report import table
from neurenix_ms.recipes.conditioned.training import WAYS, build

ASSETS = ROOT / "docs" / "assets"


def test_the_stored_table_is_that_of_the_stored_results():
    results = json.loads((ASSETS / "conditioned.json").read_text("utf-8"))
    assert (ASSETS / "conditioned.md").read_text("utf-8").strip() == table(results)
    for way in WAYS:
        parameters = {r["parameters"] for r in results if r["way"] == way}
        assert parameters == {sum(p.numel() for p in build(way).parameters())}


def test_the_condition_is_ahead_at_speeds_that_were_not_seen():
    results = json.loads((ASSETS / "conditioned.json").read_text("utf-8"))
    errors = {way: [mean(r["unseen"]) for r in results if r["way"] == way] for way in WAYS}
    assert len(errors["condition"]) >= 3
    assert mean(errors["condition"]) < mean(errors["channel"]) < mean(errors["none"])
    pairs = zip(errors["condition"], errors["channel"], strict=True)  # seed by seed
    assert all(condition < channel for condition, channel in pairs)
    gap = mean(errors["channel"]) - mean(errors["condition"])
    assert gap > max(stdev(errors["condition"]), stdev(errors["channel"]))
