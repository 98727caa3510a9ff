"""Stored benchmarks and small runs in, tables that help to choose out, as Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import COLUMNS, RESULTS, Report, Row
from docs_tools.source import ROOT
from neurenix_ms import (
    AtrousPyramidPooling,
    BidirectionalFusion,
    MultiScaleModel,
    PyramidFusion,
    UNet,
)
from neurenix_ms.execution import footprint
from neurenix_ms.meter import count_flops, parameter_table, peak_tensor_bytes
from neurenix_ms.multiscale.fusion import METHODS

TILES = ROOT / "docs" / "assets" / "tiles.json"
OURS = "ours"
FUSIONS = {
    "concat": "sources say different things, and data suffices to learn the mixture",
    "sum": "channels already mean the same at every source",
    "mean": "the same, where their number may change",
    "max": "a detection at any scale should win",
    "attention": "which scale matters depends on the input",
    "attention, one size": "the same for two maps of one size, which need no resizing",
}
POOLINGS = {
    "MultiScalePooling avg": "every pixel should see its surroundings at several widths; no weights",
    "MultiScalePooling max": "the same, where the strongest response counts; costs the most",
    "PyramidPooling": "the class of a pixel depends on the whole scene; has weights, not for tiles",
    "PyramidPooling, views": "its bins beside the map, for a convolution of your own",
    "AtrousPyramidPooling": "the class of a pixel depends on what surrounds it at several distances",
    "SpatialPyramidPooling": "a vector is wanted from maps of any size",
}
NECKS: dict[str, tuple[str, dict[str, Any]]] = {
    "PyramidFusion": ("coarse levels know what fine ones need: what is where", {}),
    "BidirectionalFusion": (
        "fine levels know what coarse ones need too: small objects beside large ones; the least cost",
        {},
    ),
    "BidirectionalFusion, 3 layers": ("the same, where accuracy is worth more", {"repeats": 3}),
    "BidirectionalFusion, panet": (
        "the same with full convolutions: few channels, or a GPU that does not like depthwise ones",
        {"paths": "panet", "weighting": None, "separable": False, "downsample": "conv"},
    ),
}
MEMORY = {
    "plain": "it fits",
    OURS: "it fits",
    "ours, checkpointing": "the training step does not fit: first choice",
    "torch.utils.checkpoint": "the network is not of this package",
}
NORMS = {
    "batch": "batches have some tens of maps, and training and use look alike",
    "group": "batches are small, as with large 3-D maps; no statistics to keep",
    "instance": "the level of intensity means nothing (scanners, lighting)",
    None: "the values themselves matter, as in a residual model of a field",
}
SCALES = {
    (1.0,): "the finest scale sees enough",
    (1.0, 0.5): "a classifier over whole images: detail is averaged away at the end",
    (1.0, 0.75, 0.5): "small images: coarser scales have too few pixels left",
    (1.0, 0.5, 0.25, 0.125): "large images with large objects",
}


def fusions(path: str | Path = RESULTS) -> str:
    """Fusion methods: when to take which, and what it costs at the largest size that was measured.

    Args:
        path: Results of the benchmarks.
    """
    forward = _cases(path, "fusion/forward", "method")
    step = _cases(path, "fusion/train-step", "method")
    measured = {
        name: [
            *_cells(case, ("time", "flops", "params", "tensor_peak_bytes")),
            *_cells(step.get(name), ("tensor_peak_bytes",)),
        ]
        for name, case in forward.items()
    }
    heads = ["time", "FLOPs", "parameters", "peak", "peak of a training step"]
    return _measured_on(forward) + _rows("method", FUSIONS, heads, measured)


def poolings(path: str | Path = RESULTS) -> str:
    """Poolings of a 2-D map: when to take which, and what it costs.

    Args:
        path: Results of the benchmarks.
    """
    fields = ("time", "flops", "params", "tensor_peak_bytes")
    cases = _cases(path, "pooling/forward", "block", dims=2)
    measured = {name: _cells(case, fields) for name, case in cases.items()}
    pool = AtrousPyramidPooling(64, 64)
    shape = next(iter(cases.values())).value("shape")
    measured["AtrousPyramidPooling"] = ["-", *_counted(pool, torch.zeros(shape, device="meta"))]
    heads = ["time", "FLOPs", "parameters", "peak"]
    return _measured_on(cases) + _rows("block", POOLINGS, heads, measured)


def necks() -> str:
    """Necks over three levels: when to take which, and what it costs, counted now."""
    widths = [64, 128, 256]
    features = [torch.zeros(1, n, 64 >> k, 64 >> k, device="meta") for k, n in enumerate(widths)]
    words, measured = {}, {}
    for name, (when, options) in NECKS.items():
        build = PyramidFusion if name == "PyramidFusion" else BidirectionalFusion
        words[name], measured[name] = when, _counted(build(widths, 64, **options), features)
    return _rows("neck", words, COUNTED, measured)


def memory(path: str | Path = RESULTS) -> str:
    """Ways to make a training step of a 2-D U-Net smaller, and what they cost.

    Args:
        path: Results of the benchmarks.
    """
    cases = _cases(path, "memory/checkpointing", "variant", variant=None, dims=2)
    measured = {
        name: [*_cells(case, ("tensor_peak_bytes",)), *_ratios(case)]
        for name, case in cases.items()
    }
    heads = ["peak", "of plain", "CPU time", "FLOPs"]
    return _measured_on(cases) + _rows("way", MEMORY, heads, measured)


def tiles(path: str | Path = TILES) -> str:
    """Ways to run a map that does not fit: difference to the whole map, time and memory.

    Args:
        path: Results of the recipe `tiles`.
    """
    ways = json.loads(Path(path).read_text("utf-8"))["maps"]
    lines = ["| way | difference, in std | CPU | peak |", "|---|--:|--:|--:|"]
    for name, way in ways.items():
        cells = [f"{way['error']:.0e}", f"{way['seconds']:.2f} s", f"{way['mib']:.0f} MiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def norms() -> str:
    """Norms of a U-Net: when to take which, and what each of them does, measured now."""
    measured = {norm: _norm(norm) for norm in NORMS}
    heads = ["peak of a training step", "a map depends on its batch", "passes in tiles"]
    return _rows("norm", NORMS, heads, measured)


def scales() -> str:
    """Sets of scales for one network: when to take which, and their operations, counted now."""
    measured = {}
    for names in SCALES:
        ratios = []
        for dims in (2, 3):
            convs = nn.Sequential(_conv(1, 8, dims), nn.ReLU(), _conv(8, 8, dims))
            x = torch.zeros(1, 1, *(32,) * dims)
            some, one = (MultiScaleModel(s, convs, spatial_dims=dims) for s in (names, (1.0,)))
            ratios.append(_flops(some, x) / _flops(one, x))
        measured[names] = [f"{ratio:.2f}x" for ratio in ratios]
    return _rows("scales", SCALES, ["FLOPs in 2-D", "in 3-D"], measured)


def levels(widths: Sequence[int] = (8, 16, 32, 64)) -> str:
    """How far a pixel of a U-Net sees, and what a level costs, measured now.

    Args:
        widths: Widths of the levels, as many as the deepest network has.
    """
    x = torch.zeros(1, 1, 128, 128)
    lines = ["| levels | sees, in pixels | FLOPs | parameters | peak |", "|---|--:|--:|--:|--:|"]
    for count in range(1, len(widths) + 1):
        model = UNet(1, 1, widths[:count], norm=None, remember=False).eval()
        halo = max(max(pair) for pair in footprint(model, 1).halo)
        cells = [
            f"{halo} to each side",
            COLUMNS["flops"][1](_flops(model, x)),
            COLUMNS["params"][1](parameter_table(model)[-1][1]),
            COLUMNS["tensor_peak_bytes"][1](peak_tensor_bytes(lambda m=model: m(x))),
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(path: str | Path, group: str, name: str, **wanted: Any) -> dict[str, Row]:
    """Cases of a group by one parameter, at the largest size; of our own, if nothing else is said."""
    wanted = {"variant": OURS, **wanted}
    found: dict[str, Row] = {}
    for row in sorted(Report(path).rows(group), key=lambda row: row.setting.get("size", 0)):
        params = {**row.setting, "variant": row.variant}
        if all(params.get(key) == value for key, value in wanted.items() if value is not None):
            found[params[name]] = row
    return found


def _measured_on(cases: Mapping[str, Row]) -> str:
    """A sentence with the shape of the input, or of the finest of several."""
    shapes = {" x ".join(map(str, row.value("shape"))) for row in cases.values()}
    return f"Measured on an input of {' or '.join(sorted(shapes))}.\n\n"


def _cells(row: Row | None, fields: Iterable[str]) -> list[str]:
    values = [(field, row and row.value(field)) for field in fields]
    return ["-" if value is None else COLUMNS[field][1](value) for field, value in values]


def _ratios(row: Row) -> list[str]:
    """Beside the plain way, which is 1; times as measured in pairs."""
    own = 1.0 if row.is_baseline else None
    ratios = [row.ratio(field) or own for field in ("tensor_peak_bytes", "time", "flops")]
    return ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]


def _rows(
    what: str,
    words: Mapping[Any, str],
    heads: Sequence[str],
    measured: Mapping[Any, Sequence[str]],
) -> str:
    """What there are words for first, then what was measured besides."""
    lines = [[what, "take it when", *heads], ["---", "---", *["--:"] * len(heads)]]
    for key in dict.fromkeys([*words, *measured]):
        name = f'`"{key}"`' if key in {*METHODS, *NORMS} - {None} else _name(key)
        cells = measured.get(key, ["-"] * len(heads))
        lines.append([name, words.get(key, ""), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(key: Any) -> str:
    if isinstance(key, tuple):
        return f"`{list(key)}`"
    return key if isinstance(key, str) else f"`{key}`"


def _norm(norm: str | None) -> list[str]:
    torch.manual_seed(0)
    model = UNet(1, 1, features=[8], norm=norm, remember=False)
    x = torch.randn(2, 1, 64, 64)
    peak = peak_tensor_bytes(lambda: model(x).square().mean().backward())
    with torch.no_grad():
        alone = model(torch.stack([x[0], x[0]]))[0]
        beside = model(x)[0]
    depends = (alone - beside).abs().max() > 1e-4 * alone.abs().max()
    passes = len(footprint(model.eval(), 1).global_layers)
    shown = COLUMNS["tensor_peak_bytes"][1](peak)
    return [shown, "yes" if depends else "no", str(passes)]


COUNTED = ["FLOPs", "parameters", "peak"]


def _counted(model: nn.Module, x: Any) -> list[str]:
    """Operations and peak of a forward pass in evaluation, and parameters, from shapes alone."""
    model = model.to("meta").eval()
    with torch.no_grad():
        peak = peak_tensor_bytes(lambda: model(x), of_shapes=True)
        return [
            COLUMNS["flops"][1](_flops(model, x)),
            COLUMNS["params"][1](parameter_table(model)[-1][1]),
            COLUMNS["tensor_peak_bytes"][1](peak),
        ]


def _conv(channels_in: int, channels_out: int, dims: int) -> nn.Module:
    conv: nn.Module = {2: nn.Conv2d, 3: nn.Conv3d}[dims](channels_in, channels_out, 3, padding=1)
    return conv


def _flops(model: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return count_flops(lambda: model(x))
