"""Bytes and operations of a benchmark in; a complaint out, if they have grown since they were stored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from neurenix_ms._core.io.atomic import write_atomically

STORED = Path(__file__).with_name("baseline.json")
FIGURES = ("tensor_peak_bytes", "flops")
MAY_GROW_BY = 0.01


def is_ours(variant: str) -> bool:
    """Whether a change of this package can move the figures of a variant."""
    return not variant.startswith(("plain", "torch.", *PEERS))


def load(path: Path = STORED) -> dict[str, dict[str, int]]:
    """What is stored, by the name of the case."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(cases: Mapping[str, Mapping[str, int]], path: Path = STORED) -> None:
    """Keep these figures, and those of other cases as they were."""
    text = json.dumps(dict(sorted((load(path) | dict(cases)).items())), indent=1)
    write_atomically(path, (text + "\n").encode())


def complaint(
    case: str, measured: Mapping[str, Any], stored: Mapping[str, Mapping[str, int]]
) -> str | None:
    """What has grown by more than 1 %; None if nothing has."""
    if case not in stored:
        return f"{case} has no stored figures; measure and store them with `make bench-baseline`"
    grown = [
        f"{name} was {stored[case][name]:,} and is {measured[name]:,}"
        for name in FIGURES
        if measured[name] > (1 + MAY_GROW_BY) * stored[case][name]
    ]
    if not grown:
        return None
    return f"{case}: {' and '.join(grown)}; if that is meant, `make bench-baseline` stores it"
