"""Measurement of the channels and strides of a network, by running it on two sizes per axis."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.probing import memoryless_copy

BASE = {1: 96, 2: 96, 3: 32}  # pixels per axis; 96**3 voxels would take seconds on real tensors
GROWTH = 2**8 * 3**2 * 5 * 7  # of one axis, on fake tensors; a multiple of most strides
GROWTH_IN_MEMORY = 96  # of one axis, on real tensors
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
    """An output: its name and shape, and the axes and strides if it is a feature map."""

    name: str
    shape: Shape
    axes: tuple[int, ...] | None  # dims of batch, channels and space; None if not a feature map
    strides: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        assert self.axes is not None
        return self.shape[self.axes[1]]

    @property
    def stride(self) -> Stride:
        """Input pixels per pixel: one number, or one per axis if they differ."""
        numbers = tuple(int(s) if s == int(s) else s for s in self.strides)
        return numbers[0] if len(set(numbers)) == 1 else numbers


def named_outputs(out: Any) -> dict[str, Any]:
    """Return the outputs of a network by name."""
    if isinstance(out, Mapping):
        return {str(name): y for name, y in out.items()}
    items = out if isinstance(out, list | tuple) else [out]
    return {str(index): y for index, y in enumerate(items)}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe_shape(channels: int, spatial_dims: int) -> Shape:
    """Return the shape of the smallest input that a network is run on."""
    return (1, channels) + (BASE[spatial_dims],) * spatial_dims


def first_run(network: nn.Module, images: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], Any]:
    """Return the first kind of image that the network accepts, and its output.

    Args:
        network: Any module. It runs on fake tensors if possible, else on the first kind only.
        images: The kinds to try, as pairs of channels and number of spatial axes.
    """
    try:
        with memoryless_copy(network) as ran:
            for image in images:
                try:
                    return image, _run(ran, probe_shape(*image))
                except ValueError:
                    continue
    except Exception:  # the network cannot be copied: it holds a generator, a lock, compiled code
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
    """Measure every output of the network, on fake tensors if possible.

    Args:
        network: Any module. It runs in evaluation mode; its statistics and modes do not change.
        channels: Channels of the image.
        spatial_dims: Number of spatial axes.
        watch: A function that takes the module to be run and returns a context manager. The context
            manager yields a function from the result of the module to the outputs by name.
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
    """Run a probe on a copy with fake tensors, or on real tensors if the network needs values."""
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
    """Return for every spatial axis a shape that is longer along it."""
    return [
        tuple(n + growth * (dim == axis) for dim, n in enumerate(base))
        for axis in range(2, len(base))
    ]


def _measured(name: str, shape: Shape, longer: list[Shape], growth: int) -> Measured:
    """Return the measurement of an output from its shapes.

    An output is a feature map if exactly one of its dims grows with each spatial axis of the input.
    """
    other_output = Measured(name, shape, None, ())
    if len(shape) != len(longer) + 2 or any(len(other) != len(shape) for other in longer):
        return other_output
    space, strides = [], []
    for other in longer:
        changed = [i for i, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(changed) != 1 or changed[0] == 0 or other[changed[0]] < shape[changed[0]]:
            return other_output
        space.append(changed[0])
        strides.append(_stride(growth, other[changed[0]] - shape[changed[0]]))
    rest = set(range(1, len(shape))) - set(space)
    if len(rest) != 1:
        return other_output
    return Measured(name, shape, (0, rest.pop(), *space), tuple(strides))


def _stride(growth: int, grown: int) -> float:
    """Return the simplest ratio of `growth` to `grown`, up to rounding to whole pixels."""
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        numerator = round(denominator * growth / grown)
        if numerator and abs(growth * denominator / numerator - grown) < 1:
            return numerator / denominator
    return growth / grown


def sorted_by_stride(found: list[Measured]) -> list[Measured]:
    """Return the outputs sorted finest first."""
    return sorted(found, key=lambda one: math.prod(one.strides))


def table(found: list[Measured]) -> str:
    """Return a table of the measurements, one line per output."""
    lines = [f"{'output':<24} {'shape':<24} {'channels':>8}  stride"]
    for one in found:
        channels = one.channels if one.axes else "-"
        stride = one.stride if one.axes else "does not follow the size of the input"
        lines.append(f"{one.name:<24} {one.shape!s:<24} {channels!s:>8}  {stride}")
    return "\n".join(lines)
