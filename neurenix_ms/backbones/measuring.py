"""A network in; what its maps are, found by running it on a small input and on longer ones, out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GROWTH = 96  # of one axis; a multiple of the usual strides, also of those with a factor 3
BASE = {1: 96, 2: 96, 3: 32}  # cells of every axis; a cube of 96 would take seconds
Shape = tuple[int, ...]
Stride = int | float | tuple[int | float, ...]


@dataclass(frozen=True)
class Measured:
    """One output: its name and shape, and if it is a map, the axes it has and its strides."""

    name: str
    shape: Shape
    axes: tuple[int, ...] | None  # dimensions of batch, channel and space; None where it is no map
    strides: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        assert self.axes is not None
        return self.shape[self.axes[1]]

    @property
    def stride(self) -> Stride:
        """Input cells per cell: one number, or one per axis where they differ."""
        numbers = tuple(int(s) if s == int(s) else s for s in self.strides)
        return numbers[0] if len(set(numbers)) == 1 else numbers


def named_outputs(out: Any) -> dict[str, Any]:
    """What a network returned, by name."""
    if isinstance(out, Mapping):
        return {str(name): y for name, y in out.items()}
    items = out if isinstance(out, list | tuple) else [out]
    return {str(index): y for index, y in enumerate(items)}


def probe_shapes(channels: int, spatial_dims: int) -> list[Shape]:
    """A small input, and for every axis one that is longer along it."""
    base = (1, channels) + (BASE[spatial_dims],) * spatial_dims
    longer = [
        tuple(n + GROWTH * (axis == grown) for axis, n in enumerate(base))
        for grown in range(2, 2 + spatial_dims)
    ]
    return [base, *longer]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Statistics stay and nothing is recorded for gradients; every module goes back to its mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def run(network: nn.Module, shape: Shape) -> Any:
    """What the network returns on a probe of that shape."""
    like = next(network.parameters(), torch.empty(0))
    try:
        return network(torch.zeros(shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(
            f"the network must take maps of any size, got {type(error).__name__} from an input of "
            f"shape {shape}: {error}"
        ) from error


def measure(
    network: nn.Module,
    channels: int,
    spatial_dims: int,
    outputs: Callable[[Any], Mapping[str, Any]] = named_outputs,
) -> list[Measured]:
    """Every output of the network; `outputs` may look elsewhere than at what it returns."""
    with evaluating(network):
        probes = [
            {
                name: tuple(y.shape) if isinstance(y, Tensor) else ()
                for name, y in outputs(run(network, shape)).items()
            }
            for shape in probe_shapes(channels, spatial_dims)
        ]
    first, *longer = probes
    return [
        _measured(name, shape, [probe.get(name, ()) for probe in longer])
        for name, shape in first.items()
    ]


def _measured(name: str, shape: Shape, longer: list[Shape]) -> Measured:
    """A map follows every axis of the input with one dimension of its own, wherever that stands."""
    no_map = Measured(name, shape, None, ())
    if len(shape) != len(longer) + 2 or any(len(other) != len(shape) for other in longer):
        return no_map
    space, strides = [], []
    for other in longer:
        changed = [i for i, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(changed) != 1 or changed[0] == 0 or other[changed[0]] < shape[changed[0]]:
            return no_map
        space.append(changed[0])
        strides.append(GROWTH / (other[changed[0]] - shape[changed[0]]))
    rest = set(range(1, len(shape))) - set(space)
    if len(rest) != 1:
        return no_map
    return Measured(name, shape, (0, rest.pop(), *space), tuple(strides))


def table(found: list[Measured]) -> str:
    """What was measured, one line per output."""
    lines = [f"{'output':<24} {'shape':<24} {'channels':>8}  stride"]
    for one in found:
        channels = one.channels if one.axes else "-"
        stride = one.stride if one.axes else "does not follow the size of the input"
        lines.append(f"{one.name:<24} {one.shape!s:<24} {channels!s:>8}  {stride}")
    return "\n".join(lines)
