"""A second process that runs the same calls as this one, so that both are the ranks of a mesh."""

import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Beside:
    """The second rank.

    Args:
        pipe: Connection to its process.
        mesh: The mesh of both.
    """

    def __init__(self, pipe: Any, mesh: DeviceMesh) -> None:
        self.pipe = pipe
        self.mesh = mesh
        self.cpu_seconds = 0.0

    def together(self, make: Callable[..., Callable[[], Any]], *args: Any) -> Callable[[], Any]:
        """Return a call of `make(mesh, *args)()` in both processes, which returns what this one gets."""
        call = make(self.mesh, *args)
        self.pipe.send((make.__module__, make.__name__, args))
        self._answer()

        def run() -> Any:
            self.pipe.send(None)
            result = call()
            self.cpu_seconds = self._answer()
            return result

        return run

    def _answer(self) -> float:
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return float(answer)


@contextmanager
def beside() -> Iterator[Beside]:
    """Start a second process, and stop it at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder, 'store')}"
        process = context.Process(target=_serve, args=(there, store), daemon=True)
        process.start()
        mesh = _joined(store, 0)
        try:
            yield Beside(here, mesh)
        finally:
            here.send("stop")
            process.join(60)
            del mesh
            dist.destroy_process_group()


def _serve(pipe: Any, store: str) -> None:
    torch.set_num_threads(1)
    mesh = _joined(store, 1)
    call: Any = None
    while (job := pipe.recv()) != "stop":
        start = time.process_time()
        try:
            if job is None:
                call()
            else:
                module, name, args = job
                call = getattr(importlib.import_module(module), name)(mesh, *args)
            pipe.send(time.process_time() - start)
        except Exception as error:
            pipe.send(error)
    del mesh
    dist.destroy_process_group()


def _joined(store: str, rank: int) -> DeviceMesh:
    dist.init_process_group("gloo", store, rank=rank, world_size=2)
    return init_device_mesh("cpu", (2,), mesh_dim_names=("domain",))
