"""Stored bytes and FLOPs, and a message if a case now takes more."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurenix_ms._core.checks import shown
from neurenix_ms._core.io.atomic import write_atomically

FIGURES = ("tensor_peak_bytes", "flops")
EXCHANGED = ("sent_bytes", "collectives")  # of cases on several processes
MAY_GROW_BY = 0.01
ADVICE = "store them with pytest --bench-store"

Stored = dict[str, dict[str, int]]


def load(path: Path) -> Stored:
    """Return what is stored, by the name of the case; nothing if there is no such file.

    Raises:
        ValueError: If the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a JSON file of pytest --bench-store, got {error}"
        ) from None
    known = isinstance(cases, dict) and all(
        isinstance(figures, dict) and set(FIGURES) <= set(figures) for figures in cases.values()
    )
    if not known:
        raise ValueError(
            f"{path} must hold {' and '.join(FIGURES)} of every case, got something else; "
            f"remove it and {ADVICE}"
        )
    for case, figures in cases.items():
        for name, value in figures.items():
            if type(value) is not int or value < 0:
                raise ValueError(
                    f"{path}: {name} of {case} must be an integer of at least 0, got {shown(value)}; "
                    f"remove it and {ADVICE}"
                )
    return cases


def store(cases: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Keep these figures, and those of other cases as they were."""
    text = json.dumps(dict(sorted((load(path) | dict(cases)).items())), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def figures_of(measured: Mapping[str, Any]) -> dict[str, int]:
    """Return what is stored of a case."""
    exchanged = (figure for figure in EXCHANGED if figure in measured)
    return {figure: measured[figure] for figure in (*FIGURES, *exchanged)}


def complaint(
    case: str, measured: Mapping[str, Any], stored: Mapping[str, Mapping[str, int]]
) -> str | None:
    """Return what has grown by more than 1 %; None if nothing has."""
    if case not in stored:
        return f"{case} has no stored figures; {ADVICE}"
    grown = [
        f"{name} was {stored[case][name]:,} and is {measured[name]:,}"
        for name in figures_of(stored[case])
        if (measured.get(name) or 0) > (1 + MAY_GROW_BY) * stored[case][name]
    ]
    if not grown:
        return None
    return f"{case}: {' and '.join(grown)}; if that is meant, {ADVICE}"
