"""Models that cannot run in tiles are refused, and the layer is named."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neurenix_ms.execution.lengths import Lengths
from neurenix_ms.execution.observation import Seen, constants, observe
from neurenix_ms.execution.sites import Part, Site

ADVICE = "name a submodule that holds it in whole=(...), or replace it"


def called(model: nn.Module, layer: str) -> str:
    """A layer as an error message names it."""
    kind = type(model.get_submodule(layer)).__name__
    return f"{layer!r} ({kind})" if layer else kind


def expect_whole_ratios(model: nn.Module, lengths: Lengths) -> None:
    """Refuse to resize by factors that are not whole, nor their inverse: positions would be rounded."""
    for i, seen in enumerate(lengths.run.seen):
        before, after = lengths.lines[i], lengths.lines[i - 1]
        if seen.function != "resized" or before is None or after is None:
            continue
        for b, a in zip(before, after, strict=True):
            factor = b.resolution / a.resolution
            if 1 not in (factor.numerator, factor.denominator):
                raise ValueError(
                    f"maps must be resized by whole factors or their inverse, got {factor} in "
                    f"{called(model, seen.layer)}; {ADVICE}"
                )


def expect_repeatable(model: nn.Module, x: Tensor, parts: Mapping[str, nn.Module]) -> None:
    """Refuse what tiles would do otherwise: draw random numbers, or write over the input of a part."""

    def state() -> Tensor:
        return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()

    states = [state()]

    def listen(seen: Seen) -> None:
        states.append(state())
        if not torch.equal(states.pop(0), states[0]):
            raise ValueError(
                f"nothing in a model run in tiles may be random, got {called(model, seen.layer)} "
                f"({seen.function}); call model.eval(), or set its rate to 0"
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
