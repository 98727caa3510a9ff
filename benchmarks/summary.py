"""Summary tables of a benchmark run: the fastest variants, and how cost grows."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.baseline import is_ours
from benchmarks.peers import PEERS
from neurenix_ms.bench.results import Row, read
from neurenix_ms.bench.tables import exponent

PEER_FIELDS = ("time", "tensor_peak_bytes")


def winners(json_path: str | Path) -> str:
    """Return a row of time and peak memory ratios per group, number of axes and variant of ours.

    Ratios are relative to the plain variant and to peers: the median of all cases of the group, with
    the worst in brackets. Times are measured in pairs. Peers with other results are omitted.

    Args:
        json_path: File written by `pytest --benchmark-json`.

    Returns:
        A Markdown table.
    """
    report = read(json_path)
    lines = [
        "| group | ours | cases | time, ours / plain | peak, ours / plain | peer "
        "| times as fast as the peer | peak, ours / peer |",
        "| --- | --- | --: | --: | --: | --- | --: | --: |",
    ]
    for group in report.groups:
        if group.startswith("growth/"):
            continue
        rows = report.rows(group)
        kinds = dict.fromkeys((row.setting.get("dims"), row.variant) for row in rows)
        for dims, variant in sorted(kinds, key=lambda kind: kind[0] or 0):
            if not is_ours(variant):
                continue
            ours = [r for r in rows if (r.setting.get("dims"), r.variant) == (dims, variant)]
            cells = [group if dims is None else f"{group}, {dims}-D", variant, str(len(ours))]
            cells += [_median_and_worst(row.ratio(field) for row in ours) for field in PEER_FIELDS]
            faster, peaks, names = _beside_peers(rows, ours)
            cells += [", ".join(names) or "-", _median_and_worst(faster, worst=min)]
            cells.append(_median_and_worst(peaks))
            if set(cells[3:]) == {"-"}:
                continue  # compared with another network only
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def slopes(json_path: str | Path, group: str, power: int = 1) -> str:
    """Return how time, peak memory and FLOPs grow with the number that a group varies.

    Args:
        json_path: File written by `pytest --benchmark-json`.
        group: One of the groups "growth/...".
        power: Exponent applied to the number: 2 converts the edge of a 2-D image to pixels.

    Returns:
        A Markdown table of exponents, fitted to the logarithms.
    """
    rows = read(json_path).rows(group)
    lines = ["| network | from | to | time | peak | operations |", "|---|--:|--:|--:|--:|--:|"]
    for variant in dict.fromkeys(row.variant for row in rows):
        cases = [row for row in rows if row.variant == variant]
        xs = [next(iter(row.setting.values())) ** power for row in cases]
        exponents = (
            _exponent(xs, [row.value(field) for row in cases])
            for field in ("time", "tensor_peak_bytes", "flops")
        )
        ends = f"{min(xs):,} | {max(xs):,}"
        lines.append(f"| {variant} | {ends} | {' | '.join(exponents)} |")
    return "\n".join(lines)


def _beside_peers(rows: Sequence[Row], ours: Sequence[Row]) -> tuple[list, list, list[str]]:
    faster, peaks, names = [], [], []
    for row in ours:
        for peer in rows:
            same = peer.setting == row.setting and peer.variant.startswith(PEERS)
            if not same or peer.value("same_result") is False:
                continue
            names.append(peer.variant)
            times = peer.ratio("time"), row.ratio("time")
            if None not in times:
                faster.append(times[0] / times[1])
            peaks.append(row.value("tensor_peak_bytes") / peer.value("tensor_peak_bytes"))
    return faster, peaks, list(dict.fromkeys(names))


def _median_and_worst(ratios: Iterable[float | None], worst=max) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{statistics.median(known):.2f} ({worst(known):.2f})" if known else "-"


def _exponent(xs: Sequence[float], ys: Sequence[float | None]) -> str:
    slope = exponent(xs, ys)
    return "-" if slope is None else f"{slope:.2f}"
