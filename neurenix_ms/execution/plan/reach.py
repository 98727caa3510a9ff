"""Measure the receptive field of a model along one axis.

The model runs on a probe, a random input, which is cut at a multiple of the stride. NaN on one side of
the cut shows which results depend on that side. A run on one side alone shows which results a border at
the cut changes, and whether an input that begins there gives the results of the longer one. Meanwhile
statistics are constants. Parts run whole return what they returned on the whole probe, with NaN where
the input has NaN, because later layers depend on positions of their results as on those of the input.
Nothing is assumed about the layers.
"""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.differences import (
    can_hold_nan,
    differs,
    fill_with_nan,
    first_of,
    last_of,
    nans,
)
from neurenix_ms.execution.plan.layer_errors import ADVICE, LayerError, describe
from neurenix_ms.execution.plan.lengths import Lengths, Line
from neurenix_ms.execution.plan.observation import Run, constants, counterparts, observe
from neurenix_ms.execution.plan.sites import Asked, Part, Site

Halo = tuple[int, int]
# strides before the cut; after a prime number of them every shorter period is at another phase
CUTS = (3, 7, 11, 17, 29, 47, 79, 127, 211, 347, 577, 967, 1607, 2683, 4483)
MOST_POSITIONS = 2**22
PROBES = 2  # whose tensors are held at a time: a whole probe and a piece of it
CHEAP_POSITIONS = 2**12  # probes are widened up to this; attention needs memory for its square
SHORTEST_PIECE = 32  # on shorter pieces, a layer that depends on the position may pass by chance
ENOUGH_VALUES = 256  # at a position: max pooling hides the change of a value, but not of so many
ENOUGH_TO_JUDGE = 256  # a layer that depends on all of so many positions is taken to be global


class Probe:
    """Measurement of a model along one axis, on an input that is short along the others.

    The probe is cut at two positions. A halo counts only if it is the same at both, because one that
    grows with the pieces is not bounded. `dependence` needs the positions of NaN only, `difference`
    the values.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Mapping[str, nn.Module],
        lengths: Lengths,
        axis: int,
        cuts: tuple[int, int],
        x: Tensor,
        asked: Asked,
    ) -> None:
        self.model = model
        self.parts = parts
        self.axis = axis
        self.stride = lengths.stride[axis]
        self.cuts = cuts
        self.end = x.shape[2 + axis]
        self.x = x
        self.asked = asked
        # copies of the input, here and below, because models may overwrite it
        self.given = x.clone()
        self.whole = observe(model, self.given, parts, constants, asked=asked)
        self.tensors = [t for _, t in self.whole.tensors()]
        numbers = {id(t): i for i, (_, t) in enumerate(lengths.run.tensors())}
        matched = counterparts(self.whole, lengths.run)
        known = [None if t is None else lengths.lines[numbers[id(t)]] for t in matched]
        self.lines = [None if lines is None else lines[axis] for lines in known]

    def dependence(self) -> list[Halo | None]:
        """Return, for every tensor, the halo of input positions that a core depends on.

        None stands for a tensor that depends on the whole input. A tensor whose size does not follow
        that of the input has None if it depends on the input at all.
        """
        first, second = (self._reach_of_nan(cut) for cut in self.cuts)
        return [a if a == b else None for a, b in zip(first, second, strict=True)]

    def difference(self, depends: list[Halo | None]) -> list[Halo | None]:
        """Return `depends`, widened to the results that a border inside the input changes.

        None stands for a tensor that depends on the position in the input.
        """

        def wider(i: int, halo: Halo) -> bool:
            known = depends[i]
            return known is not None and (halo[0] > known[0] or halo[1] > known[1])

        first = self._reach_of_border(self.cuts[0])
        if any(wider(i, halo) for i, halo in enumerate(first)):
            second = self._reach_of_border(self.cuts[1])
            shortest = self.end - self.cuts[1], self.cuts[0]  # lengths of the shortest pieces
            for i, halo in enumerate(first):
                ends = all(h < r for h, r in zip(halo, shortest, strict=True))
                if wider(i, halo) and not (ends and halo == second[i]):
                    depends[i] = None
        return [
            None if known is None else (max(known[0], halo[0]), max(known[1], halo[1]))
            for known, halo in zip(depends, first, strict=True)
        ]

    def _reach_of_nan(self, cut: int) -> list[Halo | None]:
        last = self.end // self.stride * self.stride - self.stride  # start of the last stride
        head = self._piece(0, cut, filled=(0, self.stride))
        tail = self._piece(cut, self.end, filled=(last, self.end))
        pieces = counterparts(self.whole, head), counterparts(self.whole, tail)

        @functools.cache  # the result of a layer is the input of the next
        def halo(before: Tensor | None, after: Tensor | None, line: Line | None) -> Halo | None:
            if before is None or after is None:  # a padding step that the pieces did not need
                return 0, 0
            start, end = (nans(t, line) for t in (before, after))
            if line is None:
                return None if start.any() or end.any() else (0, 0)
            last_changed = self._up(last_of(start) + 1, line) - self.stride
            first_changed = self._down(line.at(cut) + first_of(end), line)
            return max(0, last_changed), max(0, last - first_changed)

        return [halo(*tensors) for tensors in zip(*pieces, self.lines, strict=True)]

    def _reach_of_border(self, cut: int) -> list[Halo]:
        starting = counterparts(self.whole, self._piece(cut, self.end))
        ending = counterparts(self.whole, self._piece(0, cut))

        @functools.cache
        def halo(
            whole: Tensor, tail: Tensor | None, head: Tensor | None, line: Line | None
        ) -> Halo:
            if line is None:
                return 0, 0
            at = min(line.at(cut), whole.shape[line.dim])
            after = whole.narrow(line.dim, at, whole.shape[line.dim] - at)
            moved = differs(after, tail, line.dim, same_length=True)
            ended = differs(whole.narrow(line.dim, 0, at), head, line.dim)
            return self._up(last_of(moved) + 1, line), self._up(at - first_of(ended), line)

        return [
            halo(*tensors)
            for tensors in zip(self.tensors, starting, ending, self.lines, strict=True)
        ]

    def _up(self, positions: int, line: Line) -> int:
        """Return the input positions, in whole strides, that cover so many of the tensor's."""
        return math.ceil(positions * line.resolution / self.stride) * self.stride

    def _down(self, positions: int, line: Line) -> int:
        return math.floor(positions * line.resolution / self.stride) * self.stride

    def _piece(self, start: int, stop: int, filled: tuple[int, int] | None = None) -> Run:
        """Run the model on a piece of the probe, with the positions `filled` set to NaN."""

        def cropped(index: int, site: Site) -> Tensor:
            if not isinstance(site, Part):
                return constants(index, site)
            line = self.lines[self.whole.site_index(index) + 1]
            if line is None:
                raise ValueError(
                    f"a part run whole must return a feature map, got {site.name!r}, which does not"
                )
            length = line.length(start, stop, self.end)
            y = self.whole.sites[index][1].narrow(line.dim, line.at(start), length).clone()
            if filled is None:
                return y
            first, last = (line.at(position) - line.at(start) for position in filled)
            # fill the last position of a result that is shorter than the input, too
            first, last = min(first, length - 1), length if filled[1] == stop else last
            fill_with_nan(y, line.dim, first, last)
            return y

        x = self.x.narrow(2 + self.axis, start, stop - start).clone()
        if filled is not None:
            fill_with_nan(x, 2 + self.axis, filled[0] - start, filled[1] - start)
        return observe(self.model, x, self.parts, cropped, asked=self.asked)


def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return normally distributed values, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def find_halos(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    lengths: Lengths,
    axis: int,
    *,
    remainder: tuple[int, ...],
    channels: int,
    short: tuple[int, ...],
    least: tuple[int, ...],
    like: Tensor,
    most_bytes: int,
    first_cut: int = 0,
) -> tuple[list[Halo], list[Halo], int]:
    """Return the halos of every site and every output along `axis`, and the cut that was long enough.

    Args:
        model: The model.
        parts: Its parts run whole, by name.
        lengths: The lengths of all tensors in it.
        axis: Spatial axis along which the halos are measured.
        remainder: Lengths of the input modulo the period.
        channels: Channels of the input.
        short: Size of the smallest input that the model takes.
        least: Size of the smallest piece of an input.
        like: A tensor with the dtype and device of the input.
        most_bytes: Bytes that the measurement may take.
        first_cut: Shortest cut to try, in strides.
    """
    stride, period = lengths.stride[axis], lengths.period[axis]
    layer = ""
    for strides in (n for n in CUTS if n >= first_cut):
        second = strides + max(1, strides // 3)
        if (2 * strides - second) * stride < max(least[axis], SHORTEST_PIECE):
            continue  # the model must take every piece as an input
        end = -(-2 * strides * stride // period) * period + remainder[axis]
        if end < short[axis]:
            continue
        shape = (1, channels, *_across(lengths, short, axis, end))
        needed = max(1, math.ceil(PROBES * lengths.bytes_per_position() * math.prod(shape[2:])))
        if needed > most_bytes:
            raise LayerError(
                f"memory_limit must hold an input of size {shape[2:]}, on which the receptive field of "
                f"{describe(model, layer)} is measured, {needed} bytes, got {most_bytes}; raise "
                f"memory_limit, {ADVICE}",
                layer,
            )
        x = noise(shape, like)
        cuts = strides * stride, second * stride
        probe = Probe(model, parts, lengths, axis, cuts, x, "nan")
        depends = probe.dependence()
        culprit = _culprit(probe, depends, lengths)
        if culprit is None or _enough(x, axis, stride, depends[:culprit]):
            batch = min(_samples(probe), max(1, most_bytes // needed))
            x = noise((batch, *shape[1:]), like)
            probe = Probe(model, parts, lengths, axis, cuts, x, "values")
            if culprit is not None:  # found by positions of NaN alone; decide by the values
                depends = probe.dependence()
                culprit = _culprit(probe, depends, lengths)
            if culprit is None:
                halos, culprit = _differing(probe, depends)
            if culprit is None:
                return *_site_and_output_halos(probe, halos, lengths), strides
        seen = probe.whole.seen[min(culprit, len(probe.whole.seen) - 1)]
        layer = seen.layer
        if _enough(x, axis, stride, depends[:culprit]):
            raise LayerError(
                "every layer must have a bounded receptive field and be shift-equivariant by the "
                f"stride, got {describe(model, seen.layer)} ({seen.function}) along axis {axis}; "
                f"{ADVICE}",
                seen.layer,
            )
    raise LayerError(
        f"every layer must have a bounded receptive field, got {describe(model, layer)}, whose "
        f"receptive field exceeds {CUTS[-1]} strides of {stride} along axis {axis}; {ADVICE}",
        layer,
    )


def _samples(probe: Probe) -> int:
    """Return the batch size at which every computed tensor has enough values at every position."""
    given = probe.given.untyped_storage()._cdata
    pairs = zip(probe.tensors, probe.lines, strict=True)
    lengths = [
        t.numel() // max(1, t.shape[line.dim])
        for t, line in pairs
        if line is not None and t.untyped_storage()._cdata != given
    ]
    return math.ceil(ENOUGH_VALUES / max(1, min(lengths, default=ENOUGH_VALUES)))


def _enough(x: Tensor, axis: int, stride: int, earlier: list[Halo | None]) -> bool:
    """Return whether a probe is long enough to reject a layer, given the halos of earlier layers."""
    end = x.shape[2 + axis]
    reach = max((max(halo) for halo in earlier if halo is not None), default=0)
    long = end >= max(ENOUGH_TO_JUDGE, 16 * stride) and 16 * reach <= end
    return long or 4 * x[0, 0].numel() > MOST_POSITIONS


def _across(lengths: Lengths, short: tuple[int, ...], axis: int, end: int) -> tuple[int, ...]:
    """Return the size of a probe along `axis`, wide enough along the others.

    In a network whose layers shift or shrink feature maps, some paths lead out of a narrow probe, so
    their results would depend on padding only.
    """
    size = [end] * len(short)
    others = [a for a in range(len(short)) if a != axis]
    for a in others:
        lines = [known[a] for known in lengths.lines if known is not None]
        shift = max((max(abs(n.inner), abs(n.outer)) * n.resolution for n in lines), default=0)
        size[a] = short[a] + 2 * math.ceil(shift / lengths.period[a]) * lengths.period[a]
    while others and math.prod(size) <= CHEAP_POSITIONS:
        for a in others:
            size[a] += lengths.period[a]
    return tuple(size)


def _culprit(probe: Probe, depends: list[Halo | None], lengths: Lengths) -> int | None:
    """Return the first tensor that depends on the whole input, if an output or a site does."""
    needed = [
        probe.whole.site_index(i) for i in range(len(probe.whole.sites)) if is_site(lengths, i)
    ]
    needed += range(len(depends) - len(probe.whole.outputs), len(depends))
    return depends.index(None) if any(depends[i] is None for i in needed) else None


def _differing(probe: Probe, depends: list[Halo | None]) -> tuple[list[Halo | None], int | None]:
    """Return the halos of all tensors, and the first tensor that depends on the position."""
    halos = probe.difference(list(depends))
    placed = [i for i, halo in enumerate(halos) if halo is None and depends[i] is not None]
    return halos, placed[0] if placed else None


def _site_and_output_halos(
    probe: Probe, halos: list[Halo | None], lengths: Lengths
) -> tuple[list[Halo], list[Halo]]:
    """Return the halos of the sites on feature maps, and those of the outputs."""
    whole = probe.whole
    known = [h for h, t in zip(halos, probe.tensors, strict=True) if h and can_hold_nan(t)]
    most = (max((h[0] for h in known), default=0), max((h[1] for h in known), default=0))
    numbers = [whole.site_index(i) for i in range(len(whole.sites)) if is_site(lengths, i)]
    last = len(halos) - len(whole.outputs)
    outputs = [
        halo if halo is not None and can_hold_nan(t) else most  # integer labels cannot hold NaN
        for halo, t in zip(halos[last:], probe.tensors[last:], strict=True)
    ]
    return [halos[i] or (0, 0) for i in numbers], outputs


def is_site(lengths: Lengths, number: int) -> bool:
    """Return whether the input of a call is a feature map; that of a normalization may be a vector."""
    inputs, result = lengths.site(number)
    if isinstance(lengths.run.sites[number][0], Part):
        if inputs is None or result is None:
            raise ValueError(
                "a part run whole must take a feature map and return one, got "
                f"{lengths.run.layers[number]!r}, which does not"
            )
        return True
    return inputs is not None and all(line.dim == 2 + a for a, line in enumerate(inputs))
