"""Measure tiles shared among the processes that torchrun has started, beside one process."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neurenix_ms import UNet
from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.execution import TiledModel, accumulate_gradients

TILE = 128
ROUNDS = 3


@dataclass
class Row:
    """What one way of running takes."""

    name: str
    error: float
    wall: float
    cpu: float


def measure_ranks(out: Path, size: int) -> None:
    """Write and print a table of inference and training on one process and on all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("domain",))
    rows = []
    for norm in (None, "instance"):
        torch.manual_seed(0)
        model = UNet(1, 1, [8, 16, 32], norm=norm, remember=False)
        rows += compare_inference(copy.deepcopy(model).eval(), mesh, size, str(norm))
        rows += compare_training(model, mesh, size // 2, str(norm))
    if mesh.get_local_rank() == 0:
        table = as_table(rows)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "ranks.md", table.encode())
        print(table)
    dist.barrier()
    del mesh
    dist.destroy_process_group()


@torch.no_grad()
def compare_inference(model: nn.Module, mesh: DeviceMesh, size: int, norm: str) -> list[Row]:
    """Time the whole image, tiles in one process, and tiles shared by all, in passes."""
    x = torch.randn(1, 1, size, size)
    wanted = model(x)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "whole image, one process": model,
        "tiles, one process": TiledModel(model, TILE, schedule="passes"),
        f"tiles, {mesh.size()} processes": TiledModel(model, TILE, mesh=mesh, schedule="passes"),
    }
    title = f"inference {size}², norm {norm}"
    rows = []
    for name, way in ways.items():
        error = ((way(x) - wanted).abs().max() / wanted.std()).item()
        call = partial(way, x)
        rows.append(Row(f"{title}: {name}", error, *seconds(call, mesh, "processes" in name)))
    return rows


def compare_training(model: nn.Module, mesh: DeviceMesh, size: int, norm: str) -> list[Row]:
    """Time the gradient of the whole image, in tiles, and in tiles shared by all."""
    x, target = torch.randn(2, 1, 1, size, size)

    def gradient(options: dict[str, Any] | None) -> Tensor:
        model.zero_grad()
        if options is None:
            F.mse_loss(model(x), target).backward()
        else:
            accumulate_gradients(model, x, target, F.mse_loss, TILE, **options)
        return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])

    wanted = gradient(None)
    ways: dict[str, Callable[[], Tensor]] = {
        "whole image, one process": lambda: gradient(None),
        "tiles, one process": lambda: gradient({"whole": "auto"}),
        f"tiles, {mesh.size()} processes": lambda: gradient({"whole": "auto", "mesh": mesh}),
    }
    title = f"training {size}², norm {norm}"
    rows = []
    for name, way in ways.items():
        error = ((way() - wanted).abs().max() / wanted.abs().max()).item()
        rows.append(Row(f"{title}: {name}", error, *seconds(way, mesh, "processes" in name)))
    return rows


def seconds(way: Callable[[], Any], mesh: DeviceMesh, shared: bool) -> tuple[float, float]:
    """Return the median wall time, and the CPU time summed over the ranks that take part."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        if shared or mesh.get_local_rank() == 0:  # the others wait, and leave the cores alone
            way()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu if shared or mesh.get_local_rank() == 0 else 0.0)
        dist.barrier()
    cpu_time = torch.tensor(statistics.median(cpus))
    dist.all_reduce(cpu_time)
    return statistics.median(walls), float(cpu_time)


def as_table(rows: list[Row]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| three-level U-Net, 2-D, tile 128 | error | wall time | CPU time, all processes |",
        "| :--- | ---: | ---: | ---: |",
    ]
    lines += [f"| {r.name} | {r.error:.0e} | {r.wall:.2f} s | {r.cpu:.2f} s |" for r in rows]
    return "\n".join(lines) + "\n"
