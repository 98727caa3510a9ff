"""The submodules of a classifier that give its last feature map at every resolution."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neurenix_ms.backbones.measuring import Measured, Outputs, measure

HEADS = ("classifier", "head", "heads", "fc")


def taps(network: nn.Module, channels: int, spatial_dims: int) -> list[Measured]:
    """Find the last feature map of every resolution along the trunk of a network, named by its module.

    The trunk is the chain of direct children; a `Sequential` that reduces more than once is opened,
    so that a stage counts as one piece and a chain of stages does not.
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
    """Outputs by the name of the submodule, and inputs by that name behind a "<"."""
    seen: dict[str, Any] = {}
    entered: dict[str, Any] = {}
    handles = []
    for path, module in network.named_modules():

        def note(_: nn.Module, given: tuple, out: Any, path: str = path) -> None:
            seen.pop(path, None)  # the order is that of finishing
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
