"""Constant tensors of modules, kept between calls."""

from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from neurenix_ms._core.hooks import is_watched
from neurenix_ms._core.tracing import sizes_are_open

Key = tuple[Hashable, ...]


class Constants:
    """Tensors that several modules may keep."""

    def __init__(self, key: Key, tensors: tuple[Tensor, ...]) -> None:
        self.key = key
        self.tensors = tensors


_of_module: WeakKeyDictionary[nn.Module, dict[Hashable, Constants]] = WeakKeyDictionary()
_shared: WeakValueDictionary[Key, Constants] = WeakValueDictionary()


def kept_constants(
    module: nn.Module, name: Hashable, key: Key, make: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Return what `make` returned for this key, which names all that the tensors depend on.

    A module keeps the tensors of the latest key of every name, and shares them with all other modules
    that keep the same ones. They are no buffers: they follow the dtype and the device of the input, and
    are in no state dict, copy or pickle. Nothing is kept while calls are recorded.
    """
    if sizes_are_open() or is_watched() or torch._C._len_torch_dispatch_stack() > 0:
        return make()
    latest = _of_module.setdefault(module, {})
    found = latest.get(name)
    if found is not None and found.key == key:
        return found.tensors
    found = _shared.get(key)
    if found is None:
        with torch.inference_mode(False):  # later calls may need gradients
            found = Constants(key, make())
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, found.tensors)):
            return found.tensors  # which mean nothing outside of the transform
        _shared[key] = found
    latest[name] = found
    return found.tensors
