"""Model of the cost of tiles on many processes, and the weak scaling that it predicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from neurenix_ms.execution.plan.footprint import make_plan
from neurenix_ms.execution.plan.sharing import shared_parts
from neurenix_ms.meter import count_flops
from neurenix_ms.recipes.reporting import markdown

BYTES = 4  # of a value
COUNTED = {2: 64, 3: 32}  # edge length at which operations are counted


@dataclass(frozen=True)
class SharedLevel:
    """A part that processes share, without the parts inside it.

    Args:
        halo: On every side, in positions of the network's input.
        share: Ratio of its operations to those of the network.
        values: Values of its input and its result per position of the network's input.
    """

    halo: int
    share: float
    values: float


@dataclass(frozen=True)
class Layout:
    """How a network runs in tiles.

    Args:
        whole: Names of the parts run whole.
        halo: Of a tile, on every side, in positions of the input.
        share: Ratio of the operations of the parts run whole to those of the network.
        values: Values of the inputs of the parts run whole per position of the network's input.
        levels: Parts that processes share.
    """

    whole: tuple[str, ...]
    halo: int
    share: float
    values: float
    levels: tuple[SharedLevel, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Speeds of the processes and of the network between them.

    Args:
        seconds: Per position of the input, for one pass of the network on one process.
        bandwidth: Bytes per second that a process receives.
        latency: Seconds of one exchange between two processes.
        exchanges: Number of collectives of a pass.
    """

    seconds: float
    bandwidth: float = 1.25e9
    latency: float = 2e-5
    exchanges: int = 40


def relative_time(
    layout: Layout,
    edge: int,
    dims: int,
    num_ranks: int,
    machine: Machine,
    neighbors: Sequence[int] | None = None,
) -> float:
    """Return the time of a pass on many processes, relative to that of one process with its core alone.

    Every process has a core of `edge` positions along each axis, so the input grows with the number of
    processes (weak scaling), and 1 is ideal. What runs in tiles costs more by the halo; parts run whole
    grow with the number of processes, since every process runs them and receives their input. Shared
    parts cost more by their halo, and windows of it are received for their input and their result.

    Args:
        layout: How the network runs.
        edge: Edge length of a core.
        dims: Number of axes.
        num_ranks: Number of processes.
        machine: Speeds.
        neighbors: Number of sides with a halo, 0 to 2 for every axis; by default 2, as in the middle of
            a large grid of processes. A slab between two others has (2, 0, 0).

    Examples:
        >>> machine = Machine(seconds=1e-6)
        >>> round(relative_time(Layout((), 0, 0.0, 0.0), 128, 3, 1, machine), 3)
        1.0
        >>> round(relative_time(Layout(("level.inner",), 4, 0.2, 1.0), 128, 3, 8, machine), 2)
        2.58
    """
    if num_ranks == 1:
        return 1.0
    sides = (2,) * dims if neighbors is None else neighbors

    def window(halo: int) -> float:
        """Return the ratio of a core with its halo to the core."""
        return math.prod(1 + count * halo / edge for count in sides)

    alone = machine.seconds * edge**dims
    in_tiles = 1 - layout.share - sum(level.share for level in layout.levels)
    tile = in_tiles * window(layout.halo)
    tile += sum(level.share * window(level.halo) for level in layout.levels)
    values = layout.values * edge**dims * (num_ranks - 1)
    for level in layout.levels:
        values += level.values * edge**dims * (window(level.halo) - 1)
    received = BYTES * values / machine.bandwidth
    waiting = machine.exchanges * math.log2(num_ranks) * machine.latency
    return tile + layout.share * num_ranks + (received + waiting) / alone


def time_of_slabs(layout: Layout, edge: int, dims: int, num_ranks: int) -> float:
    """Return the arithmetic of the busiest of processes in a row, relative to that of its core alone.

    Nothing is counted for sending and waiting.
    """
    machine = Machine(1.0, bandwidth=math.inf, latency=0.0)
    neighbors = min(num_ranks - 1, 2), *(0,) * (dims - 1)
    return relative_time(layout, edge, dims, num_ranks, machine, neighbors)


def layouts_of(model: nn.Module, shape: Sequence[int]) -> list[Layout]:
    """Measure halo, operations and inputs of a U-Net for parts from every level on.

    Args:
        model: A network whose levels are nested as `level.inner`, `level.inner.inner` and so on.
        shape: Of the input for which the tiles are planned.
    """
    names = [name for name, _ in model.named_modules()]
    parts, name = [], "level.inner"
    while name in names:
        parts.append(name)
        name += ".inner"
    dims = len(shape) - 2
    inputs, results = _maps(model, torch.zeros(*shape[:2], *(COUNTED[dims],) * dims), parts)
    with torch.no_grad():
        flops = {
            part: count_flops(partial(model.get_submodule(part), inputs[part])) for part in parts
        }
        whole = count_flops(partial(model, torch.zeros(*shape[:2], *(COUNTED[dims],) * dims)))
        found = []
        for chosen in [(), *((part,) for part in parts)]:
            plan = make_plan(model, tuple(shape), torch.empty(0), chosen)
            halo = max(max(ends) for ends in plan.widest_halo())
            share = sum(flops[part] for part in chosen) / whole
            values = sum(inputs[part].numel() for part in chosen) / COUNTED[dims] ** dims
            found.append(Layout(chosen, halo, share, values))
        if parts:
            plan = make_plan(model, tuple(shape), torch.empty(0), (parts[0],))
            halo = max(max(ends) for ends in plan.widest_halo())
            levels = []
            inside = shared_parts(model, plan, shape[2:], torch.empty(0), parts, ())
            for part, below in zip(parts, [*parts[1:], ""], strict=True):
                ((_, level),) = inside
                share = (flops[part] - flops.get(below, 0)) / whole
                values = inputs[part].numel() + results[part].numel()
                scale = shape[2] / level.size[0]
                reach = max(max(ends) for ends in level.plan.widest_halo())
                positions = values / COUNTED[dims] ** dims
                levels.append(SharedLevel(math.ceil(scale * reach), share, positions))
                inside = level.shared
            found.append(Layout((), halo, 0.0, 0.0, tuple(levels)))
    return found


def _maps(
    model: nn.Module, x: Tensor, parts: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs and the results of parts."""
    found: dict[str, Tensor] = {}
    results: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
            found[name], results[name] = arguments[0], result

        handles.append(model.get_submodule(name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for part in parts:
        keep(part)
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found, results


def scaling_table(
    layouts: Sequence[Layout],
    edge: int,
    dims: int,
    machine: Machine,
    num_ranks: Sequence[int] = (8, 64, 1024),
) -> str:
    """Return the predicted weak scaling as Markdown."""
    heads = [f"{count:,} processes" for count in num_ranks]
    rows = [
        ["parts run whole", "halo", "fraction of the operations", *heads],
        [":---", *["---:"] * (2 + len(heads))],
    ]
    for layout in layouts:
        times = [relative_time(layout, edge, dims, count, machine) for count in num_ranks]
        name = ", ".join(f"`{part}`" for part in layout.whole) or "none"
        name = f"none; {len(layout.levels)} shared" if layout.levels else name
        cells = [str(layout.halo), f"{layout.share:.3f}", *(f"{t:.3g} x" for t in times)]
        rows.append([name, *cells])
    return markdown(rows) + "\n"
