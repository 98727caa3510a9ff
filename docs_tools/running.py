"""Public modules and ways of running them in; a table of what works, as the tests hold it, out."""

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
# the tests read this table too: what stands here must be so, and what does not must work
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
    """What of a way of running a module cannot have."""
    return LIMITS.get((way, module))


def modules() -> list[str]:
    """Names of all blocks and networks that take feature maps."""
    public = [name for name in multiscale.__all__ if _is_module(getattr(multiscale, name))]
    return sorted([*public, MSNet.__name__])


def table() -> str:
    """One row per module, one column per way, as Markdown."""
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
