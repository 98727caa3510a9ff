"""Errors that name the layer because of which a model cannot run in tiles."""

from pathlib import Path

from torch import nn

ADVICE = "name a submodule that holds it in whole=(...), or replace it"
HERE = str(Path(__file__).parents[1])


class LayerError(ValueError):
    """Error for a layer that cannot run in tiles, with its name."""

    def __init__(self, message: str, layer: str = "") -> None:
        super().__init__(message)
        self.layer = layer


class SizeError(LayerError):
    """Error for a layer that failed on an input of another size; other parts run whole may help."""


def describe(model: nn.Module, layer: str) -> str:
    """Return name and class of a layer for an error message."""
    kind = type(model.get_submodule(layer)).__name__
    return f"{layer!r} ({kind})" if layer else kind


def failing_layer(model: nn.Module, error: BaseException) -> str | None:
    """Return the name of the deepest submodule that raised an error; None if the model did not.

    Errors that this package raises during a call of the model give None too.
    """
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    layer, trace, deepest = None, error.__traceback__, ""
    while trace is not None:
        frame = trace.tb_frame
        deepest = frame.f_code.co_filename
        layer = names.get(id(frame.f_locals.get("self")), layer)
        trace = trace.tb_next
    ours = isinstance(error, ValueError) and deepest.startswith(HERE)
    return None if ours else layer
