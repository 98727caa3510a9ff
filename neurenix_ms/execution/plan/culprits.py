"""Name the layer that a model cannot run in tiles for."""

from pathlib import Path

from torch import nn

ADVICE = "name a submodule that holds it in whole=(...), or replace it"
HERE = str(Path(__file__).parents[1])


class LayerError(ValueError):
    """A layer that no tile can run, and its name."""

    def __init__(self, message: str, layer: str) -> None:
        super().__init__(message)
        self.layer = layer


class SizeError(LayerError):
    """A layer that failed on a map of another size; it may run where other parts run whole."""


def called(model: nn.Module, layer: str) -> str:
    """A layer as an error message names it."""
    kind = type(model.get_submodule(layer)).__name__
    return f"{layer!r} ({kind})" if layer else kind


def failing_layer(model: nn.Module, error: BaseException) -> str | None:
    """The name of the deepest submodule that an error comes from; None if the model is no part of it.

    Errors of this package itself, which it raises from inside a call of the model, have None too.
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
