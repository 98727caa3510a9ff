"""Sites at which several tiles meet, as functions with a backward of their own.

Their forward merges what the tiles of all ranks have; so does their backward with the gradients. A
*token*, a zero that passes from site to site and is added to the loss, makes backward meet all sites in
reverse order on every rank, whatever the loss of its tiles depends on. Gradients that are undefined on
all ranks stay undefined.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.execution.plan.channels import in_full_precision, spread
from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.lengths import Lines
from neurenix_ms.execution.plan.sites import Part
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run.ranks import Index, Ranks


def merged_moments(norms: Sequence[Normalization], cores: Sequence[Index], ranks: Ranks) -> Moments:
    """Return the moments of the whole feature map, from the cores of all tiles of all ranks."""
    total: Moments | None = None
    for norm, index in zip(norms, cores, strict=True):
        core = norm.x[index].detach()
        if core.numel():
            here = norm.moments(core)
            total = here if total is None else total.merged(here)
    total = ranks.merged(total, norms[0].no_moments())
    if total is None:
        raise ValueError("a normalization needs at least one value, got an empty feature map")
    return total


def normalized_together(
    norms: Sequence[Normalization],
    cores: Sequence[Index],
    moments: Moments,
    ranks: Ranks,
    token: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Return the token, and the results of a normalization that several tiles have reached."""
    meeting = _NormMeeting([norm.settings() for norm in norms], cores, moments, ranks)
    tensors = [t for norm in norms for t in (norm.x, norm.weight, norm.bias)]
    token, *results = _NormalizedTogether.apply(meeting, token, *tensors)
    return token, results


@dataclass
class _NormMeeting:
    norms: list[Normalization]  # without tensors
    cores: Sequence[Index]
    moments: Moments
    ranks: Ranks


class _NormalizedTogether(torch.autograd.Function):
    """Normalize several tiles by moments of their cores, through which backward propagates as well."""

    @staticmethod
    def forward(
        ctx: Any, meeting: _NormMeeting, token: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.meeting = meeting
        ctx.save_for_backward(*tensors)
        mean, var = meeting.moments.mean, meeting.moments.var
        tiles = zip(meeting.norms, tensors[::3], tensors[1::3], tensors[2::3], strict=True)
        return token.clone(), *(norm.result(x, mean, var, w, b) for norm, x, w, b in tiles)

    @staticmethod
    def backward(ctx: Any, d_token: Tensor, *d_results: Tensor | None) -> tuple[Any, ...]:
        meeting: _NormMeeting = ctx.meeting
        norms, moments, tensors = meeting.norms, meeting.moments, ctx.saved_tensors
        xs, weights = tensors[::3], tensors[1::3]
        found = [
            None if d is None else norm.gradients(x, moments.mean, moments.var, weight, d)
            for norm, x, weight, d in zip(norms, xs, weights, d_results, strict=True)
        ]
        here = [torch.stack([own.mean, own.var]) for own in found if own is not None]
        like = torch.stack([moments.mean, moments.var])
        (both,) = meeting.ranks.summed([sum(here[1:], here[0]) if here else None], [like])
        grads: list[Tensor | None] = []
        for norm, x, own, core in zip(norms, xs, found, meeting.cores, strict=True):
            d_x = None if own is None else own.x
            if both is not None:
                d_x = _through_moments(norm, x, d_x, core, moments, *both)
            grads += [
                None if d_x is None else d_x.to(x.dtype),
                None if own is None else own.weight,
                None if own is None else own.bias,
            ]
        wanted = zip(grads, ctx.needs_input_grad[2:], strict=True)
        return None, d_token, *(grad if needed else None for grad, needed in wanted)


def _through_moments(
    norm: Normalization,
    x: Tensor,
    d_x: Tensor | None,
    index: Index,
    moments: Moments,
    d_mean: Tensor,
    d_var: Tensor,
) -> Tensor:
    """Add the gradient through mean and variance, to which only the core contributes."""
    slope, offset = norm.through_moments(moments, d_mean, d_var)
    full = in_full_precision(x)
    d_x = torch.zeros_like(full) if d_x is None else d_x
    d_x[index].addcmul_(full[index], spread(slope, full)).add_(spread(offset, full))
    return d_x


@dataclass
class PartMeeting:
    """A part run whole that several tiles have reached.

    Args:
        part: The call of the first tile.
        tiles: All tiles of this rank.
        lines: Layout of the part's input.
        result_lines: Layout of its result.
        assembled: Returns the whole input from the inputs of the tiles.
        check: Raises if the result has another layout.
        ranks: The processes that share the tiles.
    """

    part: Part
    tiles: Sequence[Tile]
    lines: Lines
    result_lines: Lines
    assembled: Callable[[Sequence[Tensor]], Tensor]
    check: Callable[[Tensor], Any]
    ranks: Ranks


def run_together(
    meeting: PartMeeting, xs: Sequence[Tensor], token: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the token, and for each tile its piece of the part's result."""
    vectors = meeting.part.others.vectors()
    token, *results = _RunTogether.apply(meeting, token, *xs, *vectors)
    return token, results


class _RunTogether(torch.autograd.Function):
    """Run a part on the whole input, which is assembled from the cores of all tiles."""

    @staticmethod
    def forward(
        ctx: Any, meeting: PartMeeting, token: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        count = len(meeting.tiles)
        whole = meeting.assembled(tensors[:count])
        with torch.enable_grad():
            whole = whole.requires_grad_(any(ctx.needs_input_grad[2 : 2 + count]))
            vectors = [v.detach().requires_grad_(v.requires_grad) for v in tensors[count:]]
            part = meeting.part
            result = part.others.replaced(vectors).call(part.forward, whole)
        meeting.check(result)
        ctx.meeting, ctx.inner = meeting, (whole, vectors, result)
        ctx.shapes = [x.shape for x in tensors[:count]]
        plain = result.detach()
        # copies, because later layers may overwrite them
        windows = (plain[tile.wide_of_whole(meeting.result_lines)] for tile in meeting.tiles)
        return token.clone(), *(window.clone() for window in windows)

    @staticmethod
    def backward(ctx: Any, d_token: Tensor, *d_results: Tensor | None) -> tuple[Any, ...]:
        meeting: PartMeeting = ctx.meeting
        whole, vectors, result = ctx.inner
        ctx.inner = None
        d_whole: Tensor | None = None
        for tile, d in zip(meeting.tiles, d_results, strict=True):
            if d is not None:
                d_whole = torch.zeros_like(result) if d_whole is None else d_whole
                d_whole[tile.wide_of_whole(meeting.result_lines)] += d
        (d_whole,) = meeting.ranks.summed([d_whole], [result])
        nothing = [None] * (len(ctx.shapes) + len(vectors))
        if d_whole is None or not result.requires_grad:
            return None, d_token, *nothing
        if meeting.ranks.rank == 0:
            torch.autograd.backward([result], [d_whole])
        elif whole.requires_grad:
            # every rank runs the part, so its weights and vectors get their gradient on rank 0 alone
            (whole.grad,) = torch.autograd.grad([result], [whole], [d_whole], allow_unused=True)
        if whole.grad is None:
            return None, d_token, *nothing[: len(ctx.shapes)], *(v.grad for v in vectors)
        d_xs = []
        for tile, shape in zip(meeting.tiles, ctx.shapes, strict=True):
            d_xs.append(whole.new_zeros(shape))
            core = whole.grad[tile.core_of_whole(meeting.lines)]
            d_xs[-1][tile.core_of_tile(meeting.lines)] = core
        return None, d_token, *d_xs, *(v.grad for v in vectors)
