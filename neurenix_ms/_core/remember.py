"""A base class that caches results of a module's latest forward pass."""

from typing import Any

import torch

from neurenix_ms._core.tracing import is_jit_tracing, placeholder_in


class Remembers:
    """A module that keeps results of its latest forward pass, attached to the graph.

    The results are not in the state dict. A copied or pickled module does not have them. Nothing is
    kept while a model is traced or exported.
    """

    _memory: dict[str, Any] | None = None

    def clear_features(self) -> None:
        """Drop the results of the latest forward pass, so that their memory can be freed."""
        # not read before: a compiled graph would hold only for the first call, or only for later ones
        if not torch.compiler.is_exporting():  # torch.export allows no new attribute in `forward`
            self._memory = None

    def _remember(self, **results: Any) -> None:
        tracing = is_jit_tracing() or placeholder_in(list(results.values())) is not None
        if not torch.compiler.is_exporting() and not tracing:
            self._memory = results

    def _recall(self, name: str) -> Any:
        if self._memory is None:
            raise RuntimeError(
                f"{type(self).__name__} has no cached features; "
                "run a forward pass first, with remember=True where it has that argument"
            )
        return self._memory[name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}
