"""Table of the ways of running that every public module supports, as tested."""

import torch

from neurenix_ms import MSNet, multiscale

WAYS = {
    "compile": "torch.compile",
    "export": "torch.export",
    "ONNX": "ONNX",
    "bf16": "bf16",
    "fp16": "fp16",
    "channels_last": "channels last",
    "deterministic": "deterministic",
    "DDP": "DDP",
    "FSDP2": "FSDP2",
}
TRAINED = ("DDP", "FSDP2")
# the tests read this table too: a limit listed here must exist, and everything else must work
LIMITS: dict[tuple[str, str], str] = {}
WITHOUT_PARAMETERS = {
    "BlurPool",
    "GaussianPyramid",
    "InverseWaveletTransform",
    "LaplacianPyramid",
    "MultiScalePooling",
    "MultiScaleTransform",
    "PixelShuffle",
    "PixelUnshuffle",
    "PyramidDownsample",
    "Rescale",
    "SpatialPyramidPooling",
    "WaveletTransform",
}


def limit(way: str, module: str) -> str | None:
    """Return the limitation of a module in a way of running, or None."""
    return LIMITS.get((way, module))


def modules() -> list[str]:
    """Return the names of all blocks and networks that take feature maps."""
    named = [name for name in multiscale.__all__ if not name.endswith("Loss")]
    public = [name for name in named if _is_module(getattr(multiscale, name))]
    return sorted([*public, MSNet.__name__])


def table() -> str:
    """Return a Markdown table with one row per module and one column per way of running."""
    rows = ["| | " + " | ".join(WAYS.values()) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for module in modules():
        cells = [_cell(way, module) for way in WAYS]
        rows.append(f"| `{module}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(way: str, module: str) -> str:
    if way in TRAINED and module in WITHOUT_PARAMETERS:
        return "-"
    return limit(way, module) or "yes"


def _is_module(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, torch.nn.Module)
