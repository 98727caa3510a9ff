"""The processes that torchrun has started, as the ranks of a device mesh."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neurenix_ms.execution.run.ranks import Ranks

LONGEST_WAIT = timedelta(days=7)  # for another one's tiles; torchrun ends all if one has ended


@contextmanager
def joined_processes(device: str) -> Iterator[tuple[DeviceMesh | None, str]]:
    """Join the processes that torchrun has started, and leave them at the end.

    Args:
        device: Where the model runs; of "cuda", every process takes the GPU of its local rank.

    Yields:
        The mesh, None in a single process; and the device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield None, device
        return
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    try:
        yield init_device_mesh(kind, (dist.get_world_size(),)), device
    finally:
        dist.destroy_process_group()


def check_one_machine(ranks: Ranks) -> None:
    """Raise if the ranks are on several machines, which cannot write to one mapped file."""
    hosts = sorted(set(ranks.gathered(socket.gethostname())))
    if len(hosts) > 1:
        raise ValueError(
            f"the ranks must be on one machine, since they write to one mapped file, got {hosts}; "
            "TiledModel(mesh=) writes to a zarr array from several"
        )
