"""A classifier in, the places out where its maps are last seen at every resolution."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from neurenix_ms.backbones.measuring import Measured, measure

HEADS = ("classifier", "head", "heads", "fc")


def taps(network: nn.Module, channels: int, spatial_dims: int) -> list[Measured]:
    """The last map of every resolution along the trunk of a network, named by its module.

    The trunk is the chain of direct children; a `Sequential` that reduces more than once is opened,
    so that a stage counts as one piece and a chain of stages does not.
    """
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
        found = {one.name: one for one in measure(network, channels, spatial_dims, noted)}
    finally:
        for handle in handles:
            handle.remove()
    trunk = set(_trunk(network, "", found))
    last: dict[tuple[float, ...], Measured] = {}
    for path, one in found.items():
        if path in trunk and one.axes:
            last[one.strides] = one
    return list(last.values())


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
