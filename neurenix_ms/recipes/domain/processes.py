"""The processes that torchrun has started, or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Processes:
    """The processes of a run.

    Args:
        mesh: Their device mesh; None is this process alone.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.rank = 0 if mesh is None else mesh.get_local_rank()
        self.size = 1 if mesh is None else mesh.size()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.mesh is not None:
            dist.barrier()

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        room = [value]
        if self.mesh is not None:
            room = [None] * self.size
            dist.all_gather_object(room, value)
        return room


@contextmanager
def started_processes() -> Iterator[Processes]:
    """Join the processes that torchrun has started, and leave them at the end."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield Processes()
        return
    dist.init_process_group("gloo")
    try:
        names = ("domain",)
        yield Processes(init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=names))
        dist.barrier()
    finally:
        dist.destroy_process_group()
