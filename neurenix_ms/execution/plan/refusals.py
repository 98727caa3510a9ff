"""Models that cannot run in tiles are refused, and the layer is named."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.culprits import ADVICE, LayerError, called
from neurenix_ms.execution.plan.lengths import Lengths
from neurenix_ms.execution.plan.observation import Seen, constants, matches, observe
from neurenix_ms.execution.plan.sites import Part, Site
from neurenix_ms.execution.plan.spots import can_hold_nan


def check_even_resizing(model: nn.Module, lengths: Lengths) -> None:
    """Refuse to resize by factors that are not whole, nor their inverse: positions would be rounded.

    With `align_corners=True` the positions depend on the size of the map.
    """
    for seen, factor in uneven_resizing(lengths):
        if seen.ends_fixed:
            raise LayerError(
                "every layer must treat all of the map alike, got align_corners=True in "
                f"{called(model, seen.layer)} (interpolate); set align_corners=False, {ADVICE}",
                seen.layer,
            )
        raise LayerError(
            f"maps must be resized by whole factors or their inverse, got {factor} in "
            f"{called(model, seen.layer)}; {ADVICE}",
            seen.layer,
        )


def uneven_resizing(lengths: Lengths) -> Iterator[tuple[Seen, Fraction]]:
    """The calls that resize unevenly, and by which factor."""
    for i, seen in enumerate(lengths.run.seen):
        before, after = lengths.lines[i], lengths.lines[i - 1]
        if seen.function != "resized" or before is None or after is None:
            continue
        for b, a in zip(before, after, strict=True):
            factor = b.resolution / a.resolution
            if 1 not in (factor.numerator, factor.denominator) or (seen.ends_fixed and factor != 1):
                yield seen, factor


def check_no_global_layer(
    model: nn.Module, lengths: Lengths, x: Tensor, parts: Mapping[str, nn.Module]
) -> None:
    """Refuse layers that combine all cells of an axis, if the result depends on them.

    Such calls are known by name, so a small feature map tells: NaN everywhere shows whether such a
    layer depends on the values, NaN in place of its result whether anything depends on the layer.
    """
    if not lengths.combining:
        return
    spoilt = observe(model, torch.full_like(x, math.nan), parts, constants, asked="nan")
    here = matches(lengths.run, spoilt)[: len(lengths.run.seen)]
    suspects = {
        j: lengths.combining[i]
        for i, j in enumerate(here)
        if i in lengths.combining and j is not None and _is_spoilt(spoilt.seen[j].tensor)
    }
    if not _reach_a_result(model, x, parts, set(suspects)) or _reach_a_result(
        model, x, parts, set()
    ):
        return
    culprit = next(j for j in suspects if _reach_a_result(model, x, parts, {j}))
    seen = spoilt.seen[culprit]
    raise LayerError(
        "every layer must see a bounded part of the map and treat all of it alike, got "
        f"{called(model, seen.layer)} ({seen.function}) along axis {suspects[culprit]}; {ADVICE}",
        seen.layer,
    )


def _reach_a_result(
    model: nn.Module, x: Tensor, parts: Mapping[str, nn.Module], calls: set[int]
) -> bool:
    """Whether a result of the model, or what a site reads, rests on any of these calls."""

    def listen(number: int, seen: Seen) -> None:
        if number in calls and not seen.tensor._is_view():
            seen.tensor.fill_(math.nan)

    run = observe(model, x.clone(), parts, constants, listen, asked="nan")
    return any(map(_is_spoilt, (*run.outputs, *(site.x for site, _ in run.sites))))


def _is_spoilt(t: Tensor) -> bool:
    return can_hold_nan(t) and bool(t.isnan().any())


def check_repeatable(model: nn.Module, x: Tensor, parts: Mapping[str, nn.Module]) -> None:
    """Refuse what tiles would do otherwise: draw random numbers, or write over the input of a part."""

    def state() -> Tensor:
        return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()

    states = [state()]

    def listen(_: int, seen: Seen) -> None:
        states.append(state())
        if not torch.equal(states.pop(0), states[0]):
            raise LayerError(
                f"nothing in a model run in tiles may be random, got {called(model, seen.layer)} "
                f"({seen.function}); call model.eval(), or set its rate to 0",
                seen.layer,
            )

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        observe(model, x, parts, _inputs_kept, listen)


def _inputs_kept(index: int, site: Site) -> Tensor:
    """The call, refused if a part writes over its input: the rest of the model may read that too."""
    version = site.x._version
    result = constants(index, site)
    if isinstance(site, Part) and site.x._version != version:
        raise ValueError(
            f"a part that runs whole must leave its input as it is, got {site.name!r}, which writes "
            "over it; set inplace=False there"
        )
    return result
