"""Measure the receptive field and stride of a model, and plan how it runs in tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from neurenix_ms._core.arguments import UNCHECKED, checked
from neurenix_ms._core.dims import SpatialDims, check_positive
from neurenix_ms.execution.compiled import plain_module, uncompiled
from neurenix_ms.execution.plan.arguments import Kinds, check_args, kinds_passed, passing
from neurenix_ms.execution.plan.cache import cached
from neurenix_ms.execution.plan.layer_errors import SizeError, describe
from neurenix_ms.execution.plan.lengths import Lengths, Lines, measure_lengths
from neurenix_ms.execution.plan.observation import shapes_only
from neurenix_ms.execution.plan.reach import Halo, find_halos, is_site, noise
from neurenix_ms.execution.plan.requirements import (
    check_even_resizing,
    check_no_global_layer,
    check_repeatable,
)
from neurenix_ms.execution.plan.sites import Part, submodules
from neurenix_ms.execution.plan.smallest import shortest, shortest_piece
from neurenix_ms.execution.progress import search_for_a_plan

MOST_BYTES = 2**32  # for the probes, if there is no memory limit
SMALL_PROBE = 2**28  # bytes that probes may always take, whatever the limit
SIZES_TO_TRY = (8, 16, 32, 64, 96, 128, 224, 256, 384, 512, 1024, 2048)


@dataclass(frozen=True)
class Footprint:
    """Halo and stride that tiles of a model need for exact results.

    It is the result of `footprint`. Use it to choose a tile size: a halo that is as wide as the tile
    causes nine times the work in 2-D. `TiledModel` computes and uses it by itself.

    Args:
        halo: For every axis, pixels or voxels of the input needed before and after a core whose ends
            are multiples of `stride`.
        stride: Shift of the input, in pixels or voxels, under which the model is exactly equivariant.
        scale: Size of the (first) output relative to that of the input.
        global_layers: Names of the normalizations that take statistics over the whole input.

    Examples:
        >>> found = footprint(torch.nn.Conv2d(1, 1, 5, padding=2), 1)
        >>> found.halo, found.stride
        (((2, 2), (2, 2)), (1, 1))
    """

    halo: tuple[Halo, ...]
    stride: tuple[int, ...]
    scale: tuple[int | Fraction, ...]
    global_layers: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Halo of a site or an output, and its layout relative to the input.

    For a part, `result` holds the lines of its result, `channels` the channels of its input, and
    `further` the kinds of its further arguments, None if they are no vectors. `result_shape` is the
    shape of a part's result, or of an output, for a batch of one and the input on which the plan was
    made.
    """

    layer: str
    halo: tuple[Halo, ...]
    lines: Lines
    result: Lines | None = None
    result_shape: tuple[int, ...] = ()
    channels: int = 0
    further: Kinds | None = None


@dataclass(frozen=True)
class Plan:
    """Strides, halos and layouts with which a model runs in tiles.

    A plan holds for all input sizes with the same remainder by the period. `sites` has None for
    normalizations of other tensors than feature maps.
    """

    stride: tuple[int, ...]
    period: tuple[int, ...]  # of the sizes that the whole model takes
    remainder: tuple[int, ...]
    least: tuple[int, ...]  # smallest size of a tile
    sites: tuple[Place | None, ...]
    outputs: tuple[Place, ...]

    def num_sites(self) -> int:
        """Return the number of sites."""
        return len(self.site_numbers())

    def site_numbers(self) -> list[int]:
        """Return the numbers of the calls that are sites."""
        return [i for i, place in enumerate(self.sites) if place is not None]

    def place(self, number: int) -> Place:
        """Return halo and layout of a site."""
        place = self.sites[number]
        assert place is not None
        return place

    def output_halo(self) -> tuple[Halo, ...]:
        """Return the halo that covers those of all outputs."""
        return _covering(self.outputs)

    def widest_halo(self) -> tuple[Halo, ...]:
        """Return the halo that covers those of all outputs and sites."""
        return _covering([*self.outputs, *(place for place in self.sites if place is not None)])


def _covering(places: Sequence[Place]) -> tuple[Halo, ...]:
    return tuple(
        (max(h[0] for h in axis), max(h[1] for h in axis))
        for axis in zip(*(place.halo for place in places), strict=True)
    )


@checked
def footprint(
    model: nn.Module,
    in_channels: int,
    spatial_dims: SpatialDims = 2,
    *,
    args: Annotated[Sequence[Any], UNCHECKED] = (),
) -> Footprint:
    """Measure which part of the input the output depends on, by running the model on probes.

    Use it to see whether a model can run in tiles, and at what cost; `TiledModel` and
    `accumulate_gradients` measure by themselves. It works for any module that takes one tensor,
    returns tensors, and makes the same calls whatever the values of the input.

    The result is cached, outside the model, until the model changes: a layer, an attribute, a hook, a
    method, the mode or the shape of a parameter. Values of parameters do not count. Three changes
    cannot be detected: of a global variable, of a variable of a closure, and inside an object that
    is itself an attribute of an object; after one, use a `copy.deepcopy` of the model.

    Args:
        model: Any module; it runs in its present mode, train or eval.
        in_channels: Channels of its input.
        spatial_dims: Number of spatial axes of its input.
        args: Further arguments of the model for a batch of one, such as a condition `(1, K)`.

    Returns:
        The footprint for sizes that are multiples of the stride.

    Raises:
        ValueError: If a layer depends on the whole input (attention, global pooling, circular
            padding), is not shift-equivariant by the stride (`align_corners=True`, resizing by 1.5)
            or is random; the message names it. Normalizations are allowed and listed in
            `global_layers`.

    Source: Pinckaers et al. 2022, "Streaming convolutional neural networks" showed exact tiles with
    declared footprints; measuring them with NaN and with cropped inputs is new here.

    Examples:
        >>> from neurenix_ms import UNet
        >>> footprint(UNet(1, 1, features=[4, 8], norm=None), in_channels=1)
        Footprint(halo=((28, 28), (28, 28)), stride=(4, 4), scale=(1, 1), global_layers=())
    """
    check_positive(in_channels=in_channels)
    model = plain_module(model)
    like = like_parameters(model)
    further = check_args(args, (1, in_channels))
    with uncompiled(), passing(further), search_for_a_plan(model):
        size = taken_size(model, in_channels, spatial_dims, like)
        plan = make_plan(model, (1, in_channels, *size), like, ())
    scale = (1 / line.resolution for line in plan.outputs[0].lines)
    layers = dict.fromkeys(place.layer for place in plan.sites if place is not None)
    whole_numbers = (int(s) if s.denominator == 1 else s for s in scale)
    return Footprint(plan.output_halo(), plan.stride, tuple(whole_numbers), tuple(layers))


def make_plan(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    whole: tuple[str, ...],
    memory_limit: int | None = None,
) -> Plan:
    """Return the plan for inputs of this shape, made once per remainder, mode and choice of parts."""
    most = MOST_BYTES if memory_limit is None else max(memory_limit, SMALL_PROBE)
    parts = submodules(model, whole)
    shape = (1, *shape[1:])

    def measured() -> Plan:
        # inference tensors have no version counter, which tells whether they are written to; and
        # counters of operations or memory should not count the search for a plan
        with torch.inference_mode(False), _disable_current_modes():
            lengths = measure_lengths(model, shape, like, parts)
            return _measured_plan(model, lengths, shape, like, parts, most)

    def fits(plan: Plan) -> bool:
        return plan.remainder == _remainder(shape, plan.period)

    question = ("plan", whole, shape[1], len(shape), like.dtype, like.device, kinds_passed())
    return cached(model, question, measured, fits)


def _measured_plan(
    model: nn.Module,
    lengths: Lengths,
    shape: tuple[int, ...],
    like: Tensor,
    parts: Mapping[str, nn.Module],
    most_bytes: int,
) -> Plan:
    _check_outputs(model, lengths, shape)
    check_even_resizing(model, lengths)
    channels, remainder = shape[1], _remainder(shape, lengths.period)
    short = shortest(model, parts, lengths, remainder, channels, like)
    least = shortest_piece(model, parts, lengths, short, channels, like)
    check_repeatable(model, like.new_zeros(1, channels, *short), parts)
    check_no_global_layer(model, lengths, noise((1, channels, *short), like), parts)
    sites: list[list[Halo]] = []
    outputs: list[list[Halo]] = []
    cut = 0
    for axis in range(len(remainder)):
        found = find_halos(
            model,
            parts,
            lengths,
            axis,
            remainder=remainder,
            channels=channels,
            short=short,
            least=least,
            like=like,
            most_bytes=most_bytes,
            first_cut=cut,
        )
        sites.append(found[0])
        outputs.append(found[1])
        cut = found[2]
    site_halos = iter(zip(*sites, strict=True))
    places: list[Place | None] = []
    for number in range(len(lengths.run.sites)):
        inputs, result = lengths.site(number)
        if not is_site(lengths, number) or inputs is None:
            places.append(None)
            continue
        place = Place(lengths.run.layers[number], next(site_halos), inputs)
        part, output = lengths.run.sites[number]
        if isinstance(part, Part):
            place = replace(
                place,
                result=result,
                result_shape=tuple(output.shape),
                channels=part.x.shape[1],
                further=part.others.kinds(len(part.x)),
            )
        places.append(place)
    ends: list[Place] = []
    for number, lines in enumerate(lengths.outputs()):
        shape = tuple(lengths.run.outputs[number].shape)
        if lines is not None:
            ends.append(Place("", tuple(axis[number] for axis in outputs), lines, None, shape))
    return Plan(lengths.stride, lengths.period, remainder, least, tuple(places), tuple(ends))


def _check_outputs(model: nn.Module, lengths: Lengths, shape: tuple[int, ...]) -> None:
    for output, lines in zip(lengths.run.outputs, lengths.outputs(), strict=True):
        if lines is None:
            fixed = (
                seen.layer
                for seen, known in zip(lengths.run.seen, lengths.lines, strict=False)
                if known is None and seen.tensor.ndim == len(shape)
            )
            raise ValueError(
                "every output must be a feature map that grows with the input, got shape "
                f"{tuple(output.shape)} for an input of shape {shape}, whose size was lost in "
                f"{describe(model, next(fixed, ''))}; remove it, or run the model on the whole input"
            )


def like_parameters(model: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor of the model's dtype and device; of `dtype` if it has no parameters."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise ValueError(
            "a model must have its parameters before it runs in tiles, got "
            f"{type(model).__name__} with uninitialized ones; call it once on an input"
        )
    numbers = (t for t in tensors if t.is_floating_point() or t.is_complex())
    first = next(numbers, torch.empty(0, dtype=dtype))
    return torch.empty(0, dtype=first.dtype, device=first.device)


def _remainder(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n % s for n, s in zip(shape[2:], stride, strict=True))


def taken_size(
    model: nn.Module,
    in_channels: int,
    spatial_dims: int,
    like: Tensor,
    sizes: tuple[int, ...] = SIZES_TO_TRY,
) -> tuple[int, ...]:
    """Return the first of these sizes, the same along every axis, that the model takes."""
    for n in sizes:
        try:
            shapes_only(model, (1, in_channels, *(n,) * spatial_dims), like, {})
        except SizeError:
            if n == sizes[-1]:
                raise
        else:
            break
    return (n,) * spatial_dims
