"""Worker process: steps of every module, compared with those of one process."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from cases import CASES, Case, as_list, build
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from neurenix_ms.layers.blocks import ConvNormAct

SAMPLES = 2  # of each process


def loss(out: Tensor | list[Tensor]) -> Tensor:
    """A sum over samples, with different weights everywhere else."""
    total = torch.zeros(())
    for y in as_list(out):
        weights = torch.linspace(-1, 2, y[0].numel()).view(y.shape[1:])
        total = total + (y * weights).square().sum()
    return total


def with_parameters() -> list[Case]:
    """The cases that have something to train."""
    return [c for c in CASES if c.spatial_dims == 2 and any(True for _ in c.build().parameters())]


def made(case: Case) -> tuple[nn.Module, list[Tensor]]:
    """Return the same module and batch in every process.

    Its layers are in eval mode, because statistics of a batch would differ between processes; what
    contains them trains, because the heads of deep supervision are used in training only.
    """
    torch.manual_seed(0)
    model = build(case)
    for module in model.modules():
        module.train(any(True for _ in module.children()))
    return model, as_list(case.inputs((16, 21), batch=SAMPLES * dist.get_world_size()))


def gradients(model: nn.Module, maps: list[Tensor], case: Case) -> dict[str, Tensor | None]:
    """By name, without the wrapper's prefix; an unused parameter shows in the second step."""
    for _ in range(2):
        model.zero_grad()
        loss(model(maps if case.is_list else maps[0])).backward()
    named = model.named_parameters()
    return {name.removeprefix("module."): whole(p.grad) for name, p in named}


def whole(gradient: Tensor | None) -> Tensor | None:
    """All of a gradient that may be spread over the processes."""
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def by_parts(model: nn.Module) -> nn.Module:
    """Shard the parameters, each direct child in its own group."""
    return sharded(
        model, [part for part in model.children() if not isinstance(part, nn.ModuleList)]
    )


def by_layers(model: nn.Module) -> nn.Module:
    """Parameters spread over the processes, those of every convolution and norm in a group."""
    return sharded(
        model, [part for part in model.modules() if not any(True for _ in part.children())]
    )


def by_blocks(model: nn.Module) -> nn.Module:
    """Parameters spread over the processes, those of every convolution with its norm in a group."""
    return sharded(model, [part for part in model.modules() if isinstance(part, ConvNormAct)])


def sharded(model: nn.Module, parts: Iterable[nn.Module]) -> nn.Module:
    """Shard the parameters, each part in its own group."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in parts:
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {
    "ddp": DistributedDataParallel,
    "fsdp": by_parts,
    "fsdp-layers": by_layers,
    "fsdp-blocks": by_blocks,
}


def check(case: Case, wrap: str) -> str:
    """Return a description of the first difference, or None."""
    model, maps = made(case)
    expected = gradients(model, maps, case)
    model, maps = made(case)
    rank = dist.get_rank()
    share = [x[rank * SAMPLES : (rank + 1) * SAMPLES] for x in maps]
    spread = gradients(WRAPPERS[wrap](model), share, case)
    unused = [name for name in expected if expected[name] is None or spread[name] is None]
    if unused or set(spread) != set(expected):
        return f"{unused} unused of {list(spread)}"
    # biases before an instance norm have no gradient but rounding, so all share one scale
    largest = max(wanted.abs().max() for wanted in expected.values())
    for name, wanted in expected.items():
        error = (spread[name] * dist.get_world_size() - wanted).abs().max() / largest
        if not error < 1e-5:
            return f"{name} is off by {error:.1e}"
    return ""


def main(wrap: str, report: str) -> None:
    """Run every case; the first process writes the names of those that fail, and why."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    lines = []
    for case in with_parameters():
        try:
            wrong = check(case, wrap)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            lines.append(f"{case.name}: {wrong}")
    if dist.get_rank() == 0:
        Path(report).write_text("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*sys.argv[1:])
