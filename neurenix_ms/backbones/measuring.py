"""The feature maps of a network: channels and strides, measured by running it on two sizes per axis."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.probing import memoryless_copy

BASE = {1: 96, 2: 96, 3: 32}  # pixels of every axis; a cube of 96 would take seconds with memory
GROWTH = (
    2**8 * 3**2 * 5 * 7
)  # of one axis, where tensors have no memory; a multiple of most strides
GROWTH_IN_MEMORY = 96
LARGEST_DENOMINATOR = 64  # of a stride that does not divide the growth
Shape = tuple[int, ...]
Stride = int | float | tuple[int | float, ...]
Outputs = Callable[[Any], Mapping[str, Any]]

FIXED_SIZE = (
    "networks of timm with a fixed size take others if they are made by create_model(..., img_size=, "
    "strict_img_size=False), or with dynamic_img_size=True"
)


@dataclass(frozen=True)
class Measured:
    """One output: its name and shape, and if it is a feature map, the axes it has and its strides."""

    name: str
    shape: Shape
    axes: tuple[int, ...] | None  # dims of batch, channel and space; None if it is no feature map
    strides: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        assert self.axes is not None
        return self.shape[self.axes[1]]

    @property
    def stride(self) -> Stride:
        """Input pixels per pixel: one number, or one per axis where they differ."""
        numbers = tuple(int(s) if s == int(s) else s for s in self.strides)
        return numbers[0] if len(set(numbers)) == 1 else numbers


def named_outputs(out: Any) -> dict[str, Any]:
    """What a network returned, by name."""
    if isinstance(out, Mapping):
        return {str(name): y for name, y in out.items()}
    items = out if isinstance(out, list | tuple) else [out]
    return {str(index): y for index, y in enumerate(items)}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Keep statistics, record no gradients, and give every module its mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe_shape(channels: int, spatial_dims: int) -> Shape:
    """Shape of the smallest input that a network is run on."""
    return (1, channels) + (BASE[spatial_dims],) * spatial_dims


def first_run(network: nn.Module, images: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], Any]:
    """The first kind of image, channels and spatial axes, that the network takes; what it returns.

    Args:
        network: Run without memory where that is possible, else on the first kind only.
        images: The kinds to try.
    """
    try:
        with memoryless_copy(network) as ran:
            for image in images:
                try:
                    return image, _run(ran, probe_shape(*image))
                except ValueError:
                    continue
    except Exception:  # of copying: a generator, a lock, a compiled part
        if _is_meta(network):
            raise
    with evaluating(network):
        return images[0], _run(network, probe_shape(*images[0]))


def measure(
    network: nn.Module,
    channels: int,
    spatial_dims: int,
    watch: Callable[[nn.Module], AbstractContextManager[Outputs]] = lambda _: nullcontext(
        named_outputs
    ),
) -> list[Measured]:
    """Measure every output of the network, without memory where that is possible.

    Args:
        network: Run in evaluation; its statistics and modes stay as they are.
        channels: Channels of the image.
        spatial_dims: Number of spatial axes.
        watch: Called with the module that will be run; gives, while it is entered, a function of what
            the module returned that tells the outputs by name.
    """
    base = probe_shape(channels, spatial_dims)

    def measured(ran: nn.Module, growth: int) -> list[Measured]:
        with watch(ran) as outputs:
            first, *longer = (
                {
                    name: tuple(y.shape) if isinstance(y, Tensor) else ()
                    for name, y in outputs(_run(ran, shape)).items()
                }
                for shape in (base, *_longer(base, growth))
            )
        return [
            _measured(name, shape, [probe.get(name, ()) for probe in longer], growth)
            for name, shape in first.items()
        ]

    found: list[Measured] = _probed(network, measured)
    return found


def _probed(network: nn.Module, probe: Callable[[nn.Module, int], Any]) -> Any:
    """Run a probe on a copy without memory, or in memory if the network needs values."""
    try:
        with memoryless_copy(network) as ran:
            return probe(ran, GROWTH)
    except Exception:
        if _is_meta(network):
            raise
    with evaluating(network):
        return probe(network, GROWTH_IN_MEMORY)


def _run(network: nn.Module, shape: Shape) -> Any:
    like = next(network.parameters(), torch.empty(0))
    try:
        return network(torch.zeros(shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(
            f"the network must take images of any size, got {type(error).__name__} from an input "
            f"of shape {shape}: {error}{_advice(network)}"
        ) from error


def _is_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())


def _advice(network: nn.Module) -> str:
    of_timm = any(type(module).__module__.startswith("timm.") for module in network.modules())
    return f"; {FIXED_SIZE}" if of_timm else ""


def _longer(base: Shape, growth: int) -> list[Shape]:
    """For every axis a shape that is longer along it."""
    return [
        tuple(n + growth * (dim == axis) for dim, n in enumerate(base))
        for axis in range(2, len(base))
    ]


def _measured(name: str, shape: Shape, longer: list[Shape], growth: int) -> Measured:
    """A feature map follows every axis of the input with one dim of its own, wherever that is."""
    no_map = Measured(name, shape, None, ())
    if len(shape) != len(longer) + 2 or any(len(other) != len(shape) for other in longer):
        return no_map
    space, strides = [], []
    for other in longer:
        changed = [i for i, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(changed) != 1 or changed[0] == 0 or other[changed[0]] < shape[changed[0]]:
            return no_map
        space.append(changed[0])
        strides.append(_stride(growth, other[changed[0]] - shape[changed[0]]))
    rest = set(range(1, len(shape))) - set(space)
    if len(rest) != 1:
        return no_map
    return Measured(name, shape, (0, rest.pop(), *space), tuple(strides))


def _stride(growth: int, grown: int) -> float:
    """The simplest ratio that makes `grown` pixels of `growth`, but for rounding to whole pixels."""
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        numerator = round(denominator * growth / grown)
        if numerator and abs(growth * denominator / numerator - grown) < 1:
            return numerator / denominator
    return growth / grown


def sorted_by_stride(found: list[Measured]) -> list[Measured]:
    """Finest first."""
    return sorted(found, key=lambda one: math.prod(one.strides))


def table(found: list[Measured]) -> str:
    """What was measured, one line per output."""
    lines = [f"{'output':<24} {'shape':<24} {'channels':>8}  stride"]
    for one in found:
        channels = one.channels if one.axes else "-"
        stride = one.stride if one.axes else "does not follow the size of the input"
        lines.append(f"{one.name:<24} {one.shape!s:<24} {channels!s:>8}  {stride}")
    return "\n".join(lines)
