"""Timeline of the live tensors of a call, by module."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms.bench.comparing import call_of
from neurenix_ms.bench.results import in_bytes
from neurenix_ms.bench.svg import ACCENT, INK, svg, text
from neurenix_ms.bench.tables import aligned
from neurenix_ms.meter import LiveStorages

BACKWARD = "(backward)"
OUTSIDE = "(outside)"
MOST_ROWS = 12
MOST_SEGMENTS = 14
WIDTH, HEIGHT, TOP, LINE = 360, 150, 24, 14


@dataclass(frozen=True)
class Moment:
    """Live tensors after one operator.

    Args:
        module: Name of the innermost running module; "(outside)" or "(backward)" if there is none.
        operator: Name of the operator.
        live: Bytes of the live tensors.
    """

    module: str
    operator: str
    live: int


@dataclass
class MemoryProfile:
    """Live tensors during a call; `print` shows those at the peak, notebooks display a chart.

    As in `peak_tensor_bytes`, bytes are those of storages that the call allocated, without weights and
    inputs.

    Args:
        moments: Live tensors after every operator.
        at_peak: Bytes alive at the peak, by the module that allocated them.
        kinds: Class names of the modules, by name.

    Examples:
        >>> profile = profile_memory(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), torch.ones(4, 2))
        >>> print(profile)
        256 B at the peak, after relu in 1
          allocated by  alive
          0 (Linear)    128 B
          1 (ReLU)      128 B
    """

    moments: list[Moment] = field(default_factory=list)
    at_peak: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def peak(self) -> int:
        """Most bytes alive at one moment."""
        return max((moment.live for moment in self.moments), default=0)

    def segments(self) -> list[tuple[str, list[Moment]]]:
        """Return consecutive moments by module, of outer modules where there are too many inner ones."""
        for depth in range(8, -1, -1):
            found = [(name, list(part)) for name, part in groupby(self.moments, self._outer(depth))]
            if len(found) <= MOST_SEGMENTS:
                break
        return found

    def picture(self) -> str:
        """Draw the bytes over time as inline SVG, with the modules that ran and their highest points."""
        num, peak = max(1, len(self.moments)), max(1, self.peak)
        corners = [f"0,{HEIGHT}"]
        for i, moment in enumerate(self.moments):
            y = HEIGHT - (HEIGHT - TOP) * moment.live / peak
            corners += [f"{WIDTH * i / num:.1f},{y:.1f}", f"{WIDTH * (i + 1) / num:.1f},{y:.1f}"]
        area = f'fill="{ACCENT}" fill-opacity="0.35" stroke="{ACCENT}" stroke-width="1"'
        parts = [f'<polygon points="{" ".join([*corners, f"{WIDTH},{HEIGHT}"])}" {area}/>']
        parts.append(
            text(f"{in_bytes(self.peak)} of live tensors at the peak", 0, 11, anchor="start")
        )
        at = 0
        for number, (name, moments) in enumerate(self.segments(), 1):
            x, end = WIDTH * at / num, WIDTH * (at + len(moments)) / num
            thin = f'stroke="{INK}" stroke-width="0.6" stroke-opacity="0.6"'
            parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT}" {thin}/>')
            y = HEIGHT + LINE * (number + 0.9)
            if end - x > 14:
                parts.append(text(str(number), (x + end) / 2, HEIGHT + LINE * 0.9))
            highest = in_bytes(max(moment.live for moment in moments))
            parts.append(text(f"{number}  {self._titled(name)}", 0, y, anchor="start"))
            parts.append(text(highest, WIDTH, y, anchor="end"))
            at += len(moments)
        height = HEIGHT + LINE * (len(self.segments()) + 1.5)
        return svg(parts, WIDTH, height, title="Live tensors over time, by module")

    def _repr_html_(self) -> str:
        return self.picture()

    def __str__(self) -> str:
        if not self.moments:
            return "0 B at the peak"
        highest = max(self.moments, key=lambda moment: moment.live)
        head = f"{in_bytes(self.peak)} at the peak, after {highest.operator} in {highest.module}"
        rows = sorted(self.at_peak.items(), key=lambda row: -row[1])
        lines = [["allocated by", "alive"]]
        lines += [[self._titled(name), in_bytes(size)] for name, size in rows[:MOST_ROWS]]
        if rest := rows[MOST_ROWS:]:
            lines.append([f"{len(rest)} more", in_bytes(sum(size for _, size in rest))])
        return "\n".join([head, *aligned(lines)])

    def _titled(self, name: str) -> str:
        kind = self.kinds.get(name)
        return f"{name} ({kind})" if kind else name

    def _outer(self, depth: int) -> Callable[[Moment], str]:
        return lambda moment: ".".join(moment.module.split(".")[:depth]) or OUTSIDE


@checked
def profile_memory(model: nn.Module, inputs: Any, *, train: bool = False) -> MemoryProfile:
    """Record the live tensors of a call after every operator, and the module that allocated them.

    Use it to find out which feature maps are alive at the peak if a network does not fit into memory.
    The faster paths of this package are used as in a plain call; their tensors belong to the module
    that takes the path.

    Args:
        model: Any module, in training or evaluation mode.
        inputs: One argument (a tensor, a list of feature maps), or a tuple of several.
        train: Record a training step (forward, and backward of a mean square) instead of a forward
            pass without gradients. Gradients are set to None afterwards.

    Returns:
        The profile, as a table or a chart.

    Examples:
        >>> from neurenix_ms import UNet
        >>> profile = profile_memory(UNet(1, 1, [4, 8]), torch.ones(1, 1, 32, 32), train=True)
        >>> profile.peak == max(moment.live for moment in profile.moments)
        True
        >>> profile.picture().startswith("<div><svg")
        True
    """
    call = call_of(model, inputs if isinstance(inputs, tuple) else (inputs,), train)
    names = {id(module): name or OUTSIDE for name, module in model.named_modules()}
    with _modules_noted(names) as running, _Recording(running, train) as recording:
        call()
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name}
    return MemoryProfile(recording.moments, recording.at_peak, kinds)


class _Recording(LiveStorages):
    """Live storages by the module that made them."""

    def __init__(self, running: Sequence[str], train: bool) -> None:
        super().__init__(of_shapes=False)
        self.running = running
        self.train = train
        self.entered = False
        self.moments: list[Moment] = []
        self.at_peak: dict[str, int] = {}
        self.owners: dict[int, str] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = self.peak
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        self.moments.append(Moment(self._module(), name, self.live))
        if self.peak > before:
            alive: Counter[str] = Counter()
            for address, size in self.counted.items():
                if size:
                    alive[self.owners.get(address, OUTSIDE)] += size
            self.at_peak = dict(alive)
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        if size and storage._cdata not in self.counted:
            self.owners[storage._cdata] = self._module()
        super()._count(storage, size)

    def _module(self) -> str:
        if self.running:
            self.entered = True
            return self.running[-1]
        return BACKWARD if self.entered and self.train else OUTSIDE


@contextmanager
def _modules_noted(names: dict[int, str]) -> Iterator[list[str]]:
    """Track the names of the running modules, innermost last.

    It does not use hooks, because faster paths are not taken if there are hooks.
    """
    running: list[str] = []
    call: Callable[..., Any] = nn.Module._call_impl

    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module))
        if name is None:
            return call(module, *args, **kwargs)
        running.append(name)
        try:
            return call(module, *args, **kwargs)
        finally:
            running.pop()

    setattr(nn.Module, "_call_impl", noted)  # noqa: B010  (a method of the class cannot be assigned)
    try:
        yield running
    finally:
        setattr(nn.Module, "_call_impl", call)  # noqa: B010
