"""Table of what was measured, and a figure of what processes read and exchange."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neurenix_ms.execution.plan.footprint import Place
from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.sharing import SharedPart
from neurenix_ms.execution.run.setting import Setting
from neurenix_ms.recipes.domain.run import Run
from neurenix_ms.recipes.reporting import markdown, save_figure

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
MIB = 2**20


def measured_table(results: dict[str, Any]) -> str:
    """Return times, memory and bytes of all numbers of processes that were measured as Markdown."""
    rows = [
        [
            "",
            "wall time",
            "CPU time, all processes",
            "wall, relative",
            "CPU time of a process, relative",
            "peak of a process",
            "sent by a process",
        ],
        [":---", *["---:"] * 6],
    ]
    known = {name: found["costs"] for name, found in results.items() if "costs" in found}
    for task in ("inference", "training"):
        for name, found in sorted(known.items()):
            processes, threads = map(int, name.split("x"))
            whole = found[f"{task}, whole"]
            if processes == 1:
                told = "1 thread" if threads == 1 else f"{threads} threads"
                rows.append(_row(f"{task}: whole input, one process, {told}", whole, None))
            else:
                title = f"{task}: tiles, {processes} processes"
                rows.append(_row(title, found[f"{task}, tiles"], whole))
    return markdown(rows) + "\n"


def weak_table(results: dict[str, Any], edge: int) -> str:
    """Return measured and predicted weak scaling with cores of this edge length as Markdown."""
    rows = [
        ["processes", "predicted", "inference", "training", "sent, inference", "sent, training"],
        ["---:"] * 6,
    ]
    known = [found for found in results.values() if found.get("weak", {}).get("edge") == edge]
    for found in sorted(known, key=lambda found: found["processes"]):
        weak = found["weak"]
        cells = [str(found["processes"]), f"{weak['predicted']:.2f} x"]
        for task in ("inference", "training"):
            busiest = max(weak[f"{task}, tiles"]["cpu_seconds"])
            cells.append(f"{busiest / weak[f'{task}, whole']['cpu_seconds'][0]:.2f} x")
        for task in ("inference", "training"):
            cells.append(f"{weak[f'{task}, tiles']['sent_bytes'] / MIB:.2f} MiB")
        rows.append(cells)
    return markdown(rows) + "\n"


def _row(title: str, found: dict[str, Any], whole: dict[str, Any] | None) -> list[str]:
    ratios = ["", ""]
    if whole is not None:
        wall = found["wall_seconds"] / whole["wall_seconds"]
        cpu = max(found["cpu_seconds"]) / whole["cpu_seconds"][0]
        ratios = [f"{wall:.2f} x", f"{cpu:.2f} x"]
    peaks = [peak for peak in found["resident_peak_bytes"] if peak is not None]
    peak = f"{max(peaks) / MIB:.0f} MiB" if peaks else ""
    sent = f"{found['sent_bytes'] / MIB:.2f} MiB" if found["sent_bytes"] else ""
    seconds = [f"{found['wall_seconds']:.2f} s", f"{sum(found['cpu_seconds']):.2f} s"]
    return [title, *seconds, *ratios, peak, sent]


def draw(path: Path, run: Run, num_ranks: int = 4) -> None:
    """Draw what four processes read of the input, and what they exchange for a deep part.

    Of a volume, the first slice is drawn.
    """
    setting = run.setting(num_ranks)
    if setting is None or len(setting.grid) < num_ranks:
        return
    tiles = list(setting.grid.tiles(setting.plan.widest_halo()))[:num_ranks]
    shared = dict(setting.shared)
    parts = [
        (place, shared.get(number))
        for number, place in enumerate(setting.plan.sites)
        if place is not None and place.result
    ]
    figure = Figure(figsize=(4.6 * (2 if parts else 1), 5.4), layout="constrained", dpi=90)
    axes = figure.subplots(1, 2 if parts else 1, squeeze=False)[0]
    _draw_input(axes[0], run, tiles)
    if parts:
        _draw_part(axes[1], setting, tiles, *parts[0])
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(path, figure)


def _draw_input(axis: Axes, run: Run, tiles: list[Tile]) -> None:
    """Draw the cores, and the halo of every process."""
    image = run.x[(0,) * (len(run.x.shape) - 2)] if len(run.x.shape) > 4 else run.x[0, 0]
    rows, columns = image.shape
    axis.imshow(image, cmap="gray", extent=(0, columns, rows, 0), alpha=0.6)
    for rank, tile in enumerate(tiles):
        core, wide = tile.core[-2:], tile.wide[-2:]
        axis.add_patch(_box(core, COLORS[rank], 0.3, "none"))
        axis.add_patch(_box(_inset(wide, rank, rows), COLORS[rank], 0.0, "dashed"))
        _name(axis, core, rank)
    axis.set_title("input: read from disk, nothing is sent", fontsize=11)


def _draw_part(
    axis: Axes, setting: Setting, tiles: list[Tile], place: Place, shared: SharedPart | None
) -> None:
    """Draw the cores of a part, and the window of each process.

    That of a shared part is what the process runs it on; else it is what a process takes of the result.
    """
    size = setting.grid.size[-2:]
    rows, columns = (line.length(0, n, n) for line, n in zip(place.lines[-2:], size, strict=True))
    if shared is not None:
        inside = shared.tiles(tiles, place)
        cores = [list(tile.core[-2:]) for tile in inside]
        wides = [list(tile.wide[-2:]) for tile in inside]
    else:
        assert place.result is not None
        cores = [_ends(tile.core_of_whole(place.lines)) for tile in tiles]
        wides = [_ends(tile.wide_of_whole(place.result)) for tile in tiles]
    for rank, (core, wide) in enumerate(zip(cores, wides, strict=True)):
        axis.add_patch(_box(core, COLORS[rank], 0.3, "none"))
        axis.add_patch(_box(_inset(wide, rank, rows), COLORS[rank], 0.0, "dashed"))
        _name(axis, core, rank)
    axis.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    sent = "cores are sent to all processes" if shared is None else "neighbors exchange halos"
    axis.set_title(f"{place.layer}: {sent}", fontsize=11)


def _inset(ends: Any, rank: int, size: int) -> list[tuple[float, float]]:
    """Return a somewhat smaller range, so that the lines of several ranks do not coincide."""
    by = (0.4 + 0.7 * rank) * size / 100
    return [(start + by, stop - by) for start, stop in ends]


def _ends(index: tuple[slice, ...]) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in index[-2:]]


def _box(ends: Any, color: str, alpha: float, style: str) -> Rectangle:
    (top, bottom), (left, right) = ends
    return Rectangle(
        (left, top),
        right - left,
        bottom - top,
        facecolor=(color, alpha) if alpha else "none",
        edgecolor=color,
        linestyle=style,
        linewidth=2,
        zorder=1 if alpha else 2,
    )


def _name(axis: Axes, ends: Any, rank: int) -> None:
    (top, bottom), (left, right) = ends
    middle = (left + right) / 2, (top + bottom) / 2
    axis.text(*middle, f"rank {rank}", ha="center", va="center", fontsize=12, color="black")


def _legend() -> list[Rectangle]:
    rectangles = [
        Rectangle((0, 0), 1, 1, facecolor=("gray", 0.3), edgecolor="none"),
        Rectangle(
            (0, 0), 1, 1, facecolor="none", edgecolor="gray", linestyle="dashed", linewidth=2
        ),
    ]
    for rectangle, label in zip(
        rectangles,
        ("core of a rank", "with its halo: what it reads, or gets from others"),
        strict=True,
    ):
        rectangle.set_label(label)
    return rectangles
