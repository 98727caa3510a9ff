"""How far the cells of a model see along an axis, found by asking it.

A probe is cut at a multiple of the stride. NaN on one side of the cut shows which results depend on
that side; a run on one side alone shows which results a border there changes, and whether a map that
begins there gives what the longer one gives. Statistics are constants meanwhile, and parts that run
whole give what they gave on the whole probe, with NaN where the map has it: what follows depends on
cells of their results as on those of the map. Nothing is assumed about the layers.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.culprits import ADVICE, LayerError, called
from neurenix_ms.execution.plan.lengths import Lengths, Line
from neurenix_ms.execution.plan.observation import Run, constants, counterparts, observe
from neurenix_ms.execution.plan.sites import Asked, Part, Site
from neurenix_ms.execution.plan.spots import can_hold_nan, differs, first_of, last_of, nans, spoil

Halo = tuple[int, int]
# of strides before the cut: at a prime number every shorter period is met at another phase
CUTS = (3, 7, 11, 17, 29, 47, 79, 127, 211, 347, 577, 967, 1607, 2683, 4483)
MOST_CELLS = 2**22
PROBES = 2  # whose tensors are held at a time: a whole one, and a piece of it
CHEAP_CELLS = 2**12  # a probe is made as wide as this; attention would take their square
SHORTEST_PIECE = 32  # cells: in few cells, what depends on the place may look equal by chance
ENOUGH_TO_JUDGE = 256  # cells along the axis: a layer that sees all of them sees any map


class Probe:
    """A model looked at along one axis, on a map that is short along the others.

    It is cut at two places. What is found must be the same at both: a reach that grows with the
    pieces is none. `dependence` needs the places of NaN only, `difference` the values.
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
        # copies of the map, here and below: models may write over their input
        self.whole = observe(model, x.clone(), parts, constants, asked=asked)
        self.maps = [t for _, t in self.whole.tensors()]
        numbers = {id(t): i for i, (_, t) in enumerate(lengths.run.tensors())}
        matched = counterparts(self.whole, lengths.run)
        known = [None if t is None else lengths.lines[numbers[id(t)]] for t in matched]
        self.lines = [None if lines is None else lines[axis] for lines in known]

    def dependence(self) -> list[Halo | None]:
        """By tensor: cells of the map before and after a core that it depends on; None: all of them.

        A tensor that does not follow the map depends on all of it, if at all.
        """
        first, second = (self._reach_of_nan(cut) for cut in self.cuts)
        return [a if a == b else None for a, b in zip(first, second, strict=True)]

    def difference(self, depends: list[Halo | None]) -> list[Halo | None]:
        """`depends`, widened to what a border inside the map changes; None: the place matters."""

        def wider(i: int, halo: Halo) -> bool:
            known = depends[i]
            return known is not None and (halo[0] > known[0] or halo[1] > known[1])

        first = self._reach_of_border(self.cuts[0])
        if any(wider(i, halo) for i, halo in enumerate(first)):
            second = self._reach_of_border(self.cuts[1])
            room = self.end - self.cuts[1], self.cuts[0]  # the shortest pieces
            for i, halo in enumerate(first):
                ends = all(h < r for h, r in zip(halo, room, strict=True))
                if wider(i, halo) and not (ends and halo == second[i]):
                    depends[i] = None
        return [
            None if known is None else (max(known[0], halo[0]), max(known[1], halo[1]))
            for known, halo in zip(depends, first, strict=True)
        ]

    def _reach_of_nan(self, cut: int) -> list[Halo | None]:
        last = self.end // self.stride * self.stride - self.stride  # where the last cells begin
        head = self._piece(0, cut, spoilt=(0, self.stride))
        tail = self._piece(cut, self.end, spoilt=(last, self.end))
        halos: list[Halo | None] = []
        pieces = counterparts(self.whole, head), counterparts(self.whole, tail)
        for before, after, line in zip(*pieces, self.lines, strict=True):
            if before is None or after is None:  # padding that the pieces did not need
                halos.append((0, 0))
                continue
            start, end = (nans(t, line) for t in (before, after))
            if line is None:
                halos.append(None if start.any() or end.any() else (0, 0))
                continue
            seen_to = self._up(last_of(start) + 1, line) - self.stride
            seen_from = self._down(line.at(cut) + first_of(end), line)
            halos.append((max(0, seen_to), max(0, last - seen_from)))
        return halos

    def _reach_of_border(self, cut: int) -> list[Halo]:
        starting = counterparts(self.whole, self._piece(cut, self.end))
        ending = counterparts(self.whole, self._piece(0, cut))
        halos: list[Halo] = []
        for whole, tail, head, line in zip(self.maps, starting, ending, self.lines, strict=True):
            if line is None:
                halos.append((0, 0))
                continue
            at = min(line.at(cut), whole.shape[line.dim])
            after = whole.narrow(line.dim, at, whole.shape[line.dim] - at)
            moved = differs(after, tail, line.dim, same_length=True)
            ended = differs(whole.narrow(line.dim, 0, at), head, line.dim)
            changed = self._up(last_of(moved) + 1, line), self._up(at - first_of(ended), line)
            halos.append(changed)
        return halos

    def _up(self, cells: int, line: Line) -> int:
        """Cells of the map, in whole strides, that hold so many of the tensor."""
        return math.ceil(cells * line.resolution / self.stride) * self.stride

    def _down(self, cells: int, line: Line) -> int:
        return math.floor(cells * line.resolution / self.stride) * self.stride

    def _piece(self, start: int, stop: int, spoilt: tuple[int, int] | None = None) -> Run:
        """What happens on a piece of the probe; NaN in place of the cells that are spoilt."""

        def cropped(index: int, site: Site) -> Tensor:
            if not isinstance(site, Part):
                return constants(index, site)
            line = self.lines[self.whole.site_index(index) + 1]
            if line is None:
                raise ValueError(f"a part that runs whole must return a map, got {site.name!r}")
            length = line.length(start, stop, self.end)
            y = self.whole.sites[index][1].narrow(line.dim, line.at(start), length).clone()
            if spoilt is None:
                return y
            first, last = (line.at(cell) - line.at(start) for cell in spoilt)
            # a result that is shorter than the map still has a last cell
            first, last = min(first, length - 1), length if spoilt[1] == stop else last
            spoil(y, line.dim, first, last)
            return y

        x = self.x.narrow(2 + self.axis, start, stop - start).clone()
        if spoilt is not None:
            spoil(x, 2 + self.axis, spoilt[0] - start, spoilt[1] - start)
        return observe(self.model, x, self.parts, cropped, asked=self.asked)


def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The same random values at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def find_halos(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    lengths: Lengths,
    remainder: tuple[int, ...],
    channels: int,
    axis: int,
    short: tuple[int, ...],
    least: tuple[int, ...],
    like: Tensor,
    most_bytes: int,
    first_cut: int = 0,
) -> tuple[list[Halo], list[Halo], int]:
    """What every site and every output needs along `axis`, and the cut that was long enough.

    `short` is the smallest map that the model takes, `least` the smallest piece of one.
    """
    stride, period = lengths.stride[axis], lengths.period[axis]
    layer = ""
    for strides in (n for n in CUTS if n >= first_cut):
        second = strides + max(1, strides // 3)
        if (2 * strides - second) * stride < max(least[axis], SHORTEST_PIECE):
            continue  # every piece must be a map that the model takes
        end = -(-2 * strides * stride // period) * period + remainder[axis]
        if end < short[axis]:
            continue
        shape = (1, channels, *_across(lengths, short, axis, end))
        needed = math.ceil(PROBES * lengths.bytes_per_cell() * math.prod(shape[2:]))
        if needed > most_bytes:
            raise LayerError(
                f"memory_limit must hold a map of {shape[2:]}, on which is asked what "
                f"{called(model, layer)} sees, {needed} bytes, got {most_bytes}; raise memory_limit, "
                f"{ADVICE}",
                layer,
            )
        x = noise(shape, like)
        cuts = strides * stride, second * stride
        probe = Probe(model, parts, lengths, axis, cuts, x, "nan")
        depends = probe.dependence()
        culprit = _culprit(probe, depends, lengths)
        if culprit is None or _enough(x, axis, stride, depends[:culprit]):
            probe = Probe(model, parts, lengths, axis, cuts, x, "values")
            if culprit is not None:  # by its places of NaN alone: values have the last word
                depends = probe.dependence()
                culprit = _culprit(probe, depends, lengths)
            if culprit is None:
                halos, culprit = _differing(probe, depends)
            if culprit is None:
                return *_of_places(probe, halos, lengths), strides
        seen = probe.whole.seen[min(culprit, len(probe.whole.seen) - 1)]
        layer = seen.layer
        if _enough(x, axis, stride, depends[:culprit]):
            raise LayerError(
                "every layer must see a bounded part of the map and treat all of it alike, got "
                f"{called(model, seen.layer)} ({seen.function}) along axis {axis}; {ADVICE}",
                seen.layer,
            )
    raise LayerError(
        f"every layer must see a bounded part of the map, got {called(model, layer)}, which sees more "
        f"than {CUTS[-1]} strides of {stride} along axis {axis}; {ADVICE}",
        layer,
    )


def _enough(x: Tensor, axis: int, stride: int, earlier: list[Halo | None]) -> bool:
    """Whether a probe is long enough, beside the reach of earlier layers, to refuse a layer by it."""
    end = x.shape[2 + axis]
    reach = max((max(halo) for halo in earlier if halo is not None), default=0)
    long = end >= max(ENOUGH_TO_JUDGE, 16 * stride) and 16 * reach <= end
    return long or 4 * x[0, 0].numel() > MOST_CELLS


def _across(lengths: Lengths, short: tuple[int, ...], axis: int, end: int) -> tuple[int, ...]:
    """The size of a probe along `axis`: wide enough across that no path sees only padding there.

    A network whose layers shift or shrink maps has paths that lead out of a narrow one.
    """
    size = [end] * len(short)
    others = [a for a in range(len(short)) if a != axis]
    for a in others:
        lines = [known[a] for known in lengths.lines if known is not None]
        shift = max((max(abs(n.inner), abs(n.outer)) * n.resolution for n in lines), default=0)
        size[a] = short[a] + 2 * math.ceil(shift / lengths.period[a]) * lengths.period[a]
    while others and math.prod(size) <= CHEAP_CELLS:
        for a in others:
            size[a] += lengths.period[a]
    return tuple(size)


def _culprit(probe: Probe, depends: list[Halo | None], lengths: Lengths) -> int | None:
    """The first tensor that depends on all of the map, if a result or a site does."""
    needed = [
        probe.whole.site_index(i) for i in range(len(probe.whole.sites)) if is_site(lengths, i)
    ]
    needed += range(len(depends) - len(probe.whole.outputs), len(depends))
    return depends.index(None) if any(depends[i] is None for i in needed) else None


def _differing(probe: Probe, depends: list[Halo | None]) -> tuple[list[Halo | None], int | None]:
    """The halos of all tensors, and the first for which the place in the map matters."""
    halos = probe.difference(list(depends))
    placed = [i for i, halo in enumerate(halos) if halo is None and depends[i] is not None]
    return halos, placed[0] if placed else None


def _of_places(
    probe: Probe, halos: list[Halo | None], lengths: Lengths
) -> tuple[list[Halo], list[Halo]]:
    """The halos of the sites that are maps, and of the outputs."""
    whole = probe.whole
    known = [h for h, t in zip(halos, probe.maps, strict=True) if h and can_hold_nan(t)]
    most = (max((h[0] for h in known), default=0), max((h[1] for h in known), default=0))
    numbers = [whole.site_index(i) for i in range(len(whole.sites)) if is_site(lengths, i)]
    last = len(halos) - len(whole.outputs)
    outputs = [
        halo if halo is not None and can_hold_nan(t) else most  # labels show no NaN
        for halo, t in zip(halos[last:], probe.maps[last:], strict=True)
    ]
    return [halos[i] or (0, 0) for i in numbers], outputs


def is_site(lengths: Lengths, number: int) -> bool:
    """Whether a call is one on a map; a normalization of a vector is not."""
    inputs, result = lengths.site(number)
    if isinstance(lengths.run.sites[number][0], Part):
        if inputs is None or result is None:
            raise ValueError(
                "a part that runs whole must take a map and return one, got "
                f"{lengths.run.layers[number]!r}"
            )
        return True
    return inputs is not None and all(line.dim == 2 + a for a, line in enumerate(inputs))
