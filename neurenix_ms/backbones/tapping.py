"""A search for the submodules that return the last feature map of every resolution."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neurenix_ms.backbones.measuring import Measured, Outputs, measure

HEADS = ("classifier", "head", "heads", "fc")


def taps(network: nn.Module, channels: int, spatial_dims: int) -> list[Measured]:
    """Return the last feature map of every resolution along a network, named by its submodule.

    Candidates are the direct children of the network. A `Sequential` that downsamples more than once is
    a chain of stages, so its children are the candidates instead.
    """
    found = {one.name: one for one in measure(network, channels, spatial_dims, _watch)}
    trunk = set(_trunk(network, "", found))
    last: dict[tuple[float, ...], Measured] = {}
    for path, one in found.items():
        if path in trunk and one.axes:
            last[one.strides] = one
    return list(last.values())


@contextmanager
def _watch(network: nn.Module) -> Iterator[Outputs]:
    """Yield a function that returns outputs by submodule, and inputs by its name with prefix "<"."""
    seen: dict[str, Any] = {}
    entered: dict[str, Any] = {}
    handles = []
    for path, module in network.named_modules():

        def note(_: nn.Module, given: tuple[Any, ...], out: Any, path: str = path) -> None:
            seen.pop(path, None)  # so that the order is that in which modules return
            seen[path] = out if isinstance(out, Tensor) else None
            entered[path] = given[0] if given and isinstance(given[0], Tensor) else None

        handles.append(module.register_forward_hook(note))

    def noted(_: Any) -> dict[str, Any]:
        result = {f"<{path}": x for path, x in entered.items()} | dict(seen)
        seen.clear()
        entered.clear()
        return result

    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def _trunk(module: nn.Module, path: str, found: dict[str, Measured]) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if not path and name in HEADS:
            continue
        if isinstance(child, nn.ModuleList) or (
            isinstance(child, nn.Sequential) and _reductions(child, inner, found) > 1
        ):
            yield from _trunk(child, inner, found)
        else:
            yield inner


def _reductions(module: nn.Module, path: str, found: dict[str, Measured]) -> int:
    children = [found.get(f"{path}.{name}") for name, _ in module.named_children()]
    strides = {child.strides for child in children if child is not None and child.axes}
    entry = found.get(f"<{path}")
    return len(strides - {entry.strides if entry is not None else ()})
