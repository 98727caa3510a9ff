"""Markdown tables that compare options, from stored benchmarks and small runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import RESULTS
from docs_tools.source import ROOT
from neurenix_ms import (
    AtrousPyramidPooling,
    BidirectionalFusion,
    DeepLabHead,
    MultiScaleModel,
    NestedUNetDecoder,
    PyramidFusion,
    SpectralMixing,
    UNet,
    UNetDecoder,
    UPerHead,
)
from neurenix_ms.bench.results import COLUMNS, Row, read
from neurenix_ms.execution import footprint
from neurenix_ms.meter import count_flops, parameter_table, peak_tensor_bytes
from neurenix_ms.multiscale.fusion import METHODS
from neurenix_ms.registry import get_preset, list_models

TILES = ROOT / "docs" / "assets" / "tiles.json"
OURS = "ours"
FUSIONS = {
    "concat": "the sources hold different information, and there is enough data to learn the weights",
    "sum": "the channels have the same meaning in every source",
    "mean": "as sum, but the number of sources may change",
    "max": "a detection at any one scale is enough",
    "attention": "the scale that matters depends on the input",
    "attention, one size": "as attention, for two feature maps of one size without resizing",
}
POOLINGS = {
    "MultiScalePooling avg": "every pixel needs context from several window sizes; no parameters",
    "MultiScalePooling max": "as avg, where the strongest response counts; the slowest",
    "PyramidPooling": "the class of a pixel depends on the whole image; has parameters, cannot be tiled",
    "PyramidPooling, views": "as above, returns the pooled features for a convolution of your own",
    "AtrousPyramidPooling": "the class of a pixel depends on its surroundings at several distances",
    "SpectralMixing": "a periodic field needs global context, with the same weights at every resolution",
    "SpatialPyramidPooling": "you need a vector of fixed length from images of any size",
}
NECKS: dict[str, tuple[str, dict[str, Any]]] = {
    "PyramidFusion": ("context of coarse levels is needed at fine ones", {}),
    "BidirectionalFusion": (
        "detail of fine levels is also needed at coarse ones (small and large objects)",
        {},
    ),
    "BidirectionalFusion, 3 layers": (
        "as above, if accuracy matters more than cost",
        {"repeats": 3},
    ),
    "BidirectionalFusion, panet": (
        "full convolutions are faster: few channels, or slow depthwise convolutions on the GPU",
        {"paths": "panet", "weighting": None, "separable": False, "downsample": "conv"},
    ),
}
DECODERS = {
    "UNetDecoder": "detail matters, and there are enough data for its parameters: the usual choice",
    "NestedUNetDecoder": "objects of several sizes count alike, or depth is to be chosen by pruning",
    "UPerHead": "every level of the backbone holds something for the output, as in transformers",
    "DeepLabHead": "the backbone keeps its resolution; few parameters, sharp borders",
    "PyramidFusion": "a light decoder, or one output per level",
}
MEMORY = {
    "plain": "memory suffices",
    OURS: "memory suffices",
    "ours, checkpointing": "the training step does not fit in memory: first choice",
    "torch.utils.checkpoint": "the network is not from this package",
}
NORMS = {
    "batch": "batches are large, and training data and test data have similar statistics",
    "group": "batches are small, as with large volumes; no running statistics",
    "instance": "absolute intensity carries no information (scanners, lighting)",
    None: "absolute values matter, as in a residual model of a physical field",
}
SCALES = {
    (1.0,): "the receptive field at full resolution suffices",
    (1.0, 0.5): "image classification with global pooling",
    (1.0, 0.75, 0.5): "small images, which have too few pixels at coarser scales",
    (1.0, 0.5, 0.25, 0.125): "large images with large objects",
}


def fusions(path: str | Path = RESULTS) -> str:
    """Compare fusion methods: when to use each, and its cost at the largest size measured.

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
    """Compare pooling blocks in 2-D: when to use each, and its cost.

    Args:
        path: Results of the benchmarks.
    """
    fields = ("time", "flops", "params", "tensor_peak_bytes")
    cases = _cases(path, "pooling/forward", "block", dims=2)
    measured = {name: _cells(case, fields) for name, case in cases.items()}
    blocks = (AtrousPyramidPooling(64, 64), SpectralMixing(64, 64))
    shape = next(iter(cases.values())).value("shape")
    for block in blocks:
        measured[type(block).__name__] = ["-", *_counted(block, torch.zeros(shape, device="meta"))]
    heads = ["time", "FLOPs", "parameters", "peak"]
    return _measured_on(cases) + _rows("block", POOLINGS, heads, measured)


def necks() -> str:
    """Compare necks over three levels: when to use each, and its cost, counted now."""
    widths = [64, 128, 256]
    features = [torch.zeros(1, n, 64 >> k, 64 >> k, device="meta") for k, n in enumerate(widths)]
    words, measured = {}, {}
    for name, (when, options) in NECKS.items():
        build = PyramidFusion if name == "PyramidFusion" else BidirectionalFusion
        words[name], measured[name] = when, _counted(build(widths, 64, **options), features)
    return _rows("neck", words, COUNTED, measured)


def decoders() -> str:
    """Return a table of decoders over four levels: when to take which, and what it costs."""
    widths = [64, 128, 256, 512]
    features = [torch.zeros(1, n, 64 >> k, 64 >> k, device="meta") for k, n in enumerate(widths)]
    blocks: list[nn.Module] = [
        UNetDecoder(widths, 1),
        NestedUNetDecoder(widths, 1),
        UPerHead(widths, 1, hidden_channels=64),
        DeepLabHead(widths, 1, hidden_channels=64),
        PyramidFusion(widths, 64),
    ]
    measured = {type(block).__name__: _counted(block, features) for block in blocks}
    return _rows("decoder", DECODERS, COUNTED, measured)


def presets() -> str:
    """List every preset: its class, what it is, and its source."""
    lines = ["| name | class | what it is | source |", "|---|---|---|---|"]
    for preset in map(get_preset, list_models()):
        lines.append(
            f"| `{preset.name}` | `{preset.cls}` | {preset.description} | {preset.source} |"
        )
    return "\n".join(lines)


def memory(path: str | Path = RESULTS) -> str:
    """Compare ways to reduce the memory of a training step of a 2-D U-Net, and their cost.

    Args:
        path: Results of the benchmarks.
    """
    cases = _cases(path, "memory/checkpointing", "variant", variant=None, dims=2)
    measured = {
        name: [*_cells(case, ("tensor_peak_bytes",)), *_ratios(case)]
        for name, case in cases.items()
    }
    heads = ["peak", "peak, relative", "CPU time, relative", "FLOPs, relative"]
    return _measured_on(cases) + _rows("method", MEMORY, heads, measured)


def tiles(path: str | Path = TILES) -> str:
    """Compare ways to run an image in parts: difference to the whole image, time and memory.

    Args:
        path: Results of the recipe `tiles`.
    """
    ways = json.loads(Path(path).read_text("utf-8"))["image"]
    lines = [
        "| method | difference, in standard deviations | CPU time | peak |",
        "|---|--:|--:|--:|",
    ]
    for name, way in ways.items():
        cells = [f"{way['error']:.0e}", f"{way['seconds']:.2f} s", f"{way['mib']:.0f} MiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def norms() -> str:
    """Compare the norms of a U-Net: when to use each, and its properties, measured now."""
    measured = {norm: _norm(norm) for norm in NORMS}
    heads = ["peak of a training step", "depends on the batch", "extra passes in tiles"]
    return _rows("norm", NORMS, heads, measured)


def scales() -> str:
    """Compare sets of scales for one network: when to use each, and its FLOPs, counted now."""
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
    """Return the receptive field of a U-Net and the cost of its levels, measured now.

    Args:
        widths: Widths of the levels, as many as the deepest network has.
    """
    x = torch.zeros(1, 1, 128, 128)
    lines = [
        "| levels | receptive field, in pixels | FLOPs | parameters | peak |",
        "|---|--:|--:|--:|--:|",
    ]
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
    """Return the cases of a group by one parameter, at the largest size; ours by default."""
    wanted = {"variant": OURS, **wanted}
    found: dict[str, Row] = {}
    for row in sorted(read(path).rows(group), key=lambda row: row.setting.get("size", 0)):
        params = {**row.setting, "variant": row.variant}
        if all(params.get(key) == value for key, value in wanted.items() if value is not None):
            found[params[name]] = row
    return found


def _measured_on(cases: Mapping[str, Row]) -> str:
    """Return a sentence with the shape of the input, or of the finest of several inputs."""
    shapes = {" x ".join(map(str, row.value("shape"))) for row in cases.values()}
    return f"Measured on an input of {' or '.join(sorted(shapes))}.\n\n"


def _cells(row: Row | None, fields: Iterable[str]) -> list[str]:
    values = [(field, row and row.value(field)) for field in fields]
    return ["-" if value is None else COLUMNS[field][1](value) for field, value in values]


def _ratios(row: Row) -> list[str]:
    """Return the ratios to the plain implementation; times are measured in pairs."""
    own = 1.0 if row.is_baseline else None
    ratios = [row.ratio(field) or own for field in ("tensor_peak_bytes", "time", "flops")]
    return ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]


def _rows(
    what: str,
    words: Mapping[Any, str],
    heads: Sequence[str],
    measured: Mapping[Any, Sequence[str]],
) -> str:
    """Return the table: described methods first, then the other measured ones."""
    lines = [[what, "use it when", *heads], ["---", "---", *["--:"] * len(heads)]]
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
    """Return operations and peak of a forward pass in evaluation, and parameters, from shapes alone."""
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
