"""Checks that a model can run in tiles, which raise with the name of the layer."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.differences import can_hold_nan
from neurenix_ms.execution.plan.layer_errors import ADVICE, LayerError, describe
from neurenix_ms.execution.plan.lengths import Lengths
from neurenix_ms.execution.plan.observation import Seen, constants, matches, observe
from neurenix_ms.execution.plan.sites import Part, Site


def check_even_resizing(model: nn.Module, lengths: Lengths) -> None:
    """Raise unless every resize is by a whole factor or its inverse, and without `align_corners`.

    For other factors positions are rounded; with `align_corners=True` they depend on the size.
    """
    for seen, factor in uneven_resizing(lengths):
        if seen.ends_fixed:
            raise LayerError(
                "every layer must be shift-equivariant by the stride, got align_corners=True in "
                f"{describe(model, seen.layer)} (interpolate); set align_corners=False, {ADVICE}",
                seen.layer,
            )
        raise LayerError(
            f"feature maps must be resized by whole factors or their inverse, got {factor} in "
            f"{describe(model, seen.layer)}; {ADVICE}",
            seen.layer,
        )


def uneven_resizing(lengths: Lengths) -> Iterator[tuple[Seen, Fraction]]:
    """Yield the calls that resize by other factors or with fixed ends, and the factor."""
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
    """Raise if the result depends on a layer that combines all values of an axis.

    Such calls are recognized by name, so a small input is enough: NaN everywhere shows whether such a
    layer depends on the values, and NaN in place of its result whether anything depends on the layer.
    """
    if not lengths.combining:
        return
    on_nan = observe(model, torch.full_like(x, math.nan), parts, constants, asked="nan")
    here = matches(lengths.run, on_nan)[: len(lengths.run.seen)]
    suspects = {
        j: lengths.combining[i]
        for i, j in enumerate(here)
        if i in lengths.combining and j is not None and _has_nan(on_nan.seen[j].tensor)
    }
    if not _reach_a_result(model, x, parts, set(suspects)) or _reach_a_result(
        model, x, parts, set()
    ):
        return
    culprit = next(j for j in suspects if _reach_a_result(model, x, parts, {j}))
    seen = on_nan.seen[culprit]
    raise LayerError(
        "every layer must have a bounded receptive field and be shift-equivariant by the stride, got "
        f"{describe(model, seen.layer)} ({seen.function}) along axis {suspects[culprit]}; {ADVICE}",
        seen.layer,
    )


def _reach_a_result(
    model: nn.Module, x: Tensor, parts: Mapping[str, nn.Module], calls: set[int]
) -> bool:
    """Return whether an output of the model or the input of a site depends on any of these calls."""

    def listen(number: int, seen: Seen) -> None:
        if number in calls and not seen.tensor._is_view():
            seen.tensor.fill_(math.nan)

    run = observe(model, x.clone(), parts, constants, listen, asked="nan")
    return any(map(_has_nan, (*run.outputs, *(site.x for site, _ in run.sites))))


def _has_nan(t: Tensor) -> bool:
    return can_hold_nan(t) and bool(t.isnan().any())


def check_repeatable(model: nn.Module, x: Tensor, parts: Mapping[str, nn.Module]) -> None:
    """Raise if a layer draws random numbers or a part overwrites its input, which differ in tiles."""

    def state() -> Tensor:
        return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()

    states = [state()]

    def listen(_: int, seen: Seen) -> None:
        states.append(state())
        if not torch.equal(states.pop(0), states[0]):
            raise LayerError(
                f"no layer of a model run in tiles may be random, got {describe(model, seen.layer)} "
                f"({seen.function}); call model.eval(), or set its rate to 0",
                seen.layer,
            )

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        observe(model, x, parts, _inputs_kept, listen)


def _inputs_kept(index: int, site: Site) -> Tensor:
    """Answer a call; raise if a part overwrites its input, which other layers may read."""
    version = site.x._version
    result = constants(index, site)
    if isinstance(site, Part) and site.x._version != version:
        raise ValueError(
            f"a part run whole must not modify its input, got {site.name!r}, which overwrites it; set "
            "inplace=False there"
        )
    return result
