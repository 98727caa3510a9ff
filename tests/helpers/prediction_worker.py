"""What each of several processes does to test predictions whose tiles they share.

A case is a function of the mesh, in a folder with models and an image. See `tiles_worker`.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiles_worker
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from neurenix_ms.execution.run.tiles import TiledRun
from neurenix_ms.prediction import Prediction, predict_file
from neurenix_ms.prediction import results as results_file

CASES: dict[str, Callable[[DeviceMesh], None]] = {}
ENDINGS = ("npy", "zarr", "nc", "raw")


def case(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    """Register a case."""
    CASES[function.__name__] = function
    return function


def start(rank: int, size: int, folder: str, names: list[str]) -> None:
    """Run these cases as one of `size` processes."""
    os.chdir(folder)
    tiles_worker.CASES.update(CASES)
    tiles_worker.start(rank, size, folder, names)


def predict(mesh: DeviceMesh | None, target: str, model: str = "blur", **more: Any) -> Prediction:
    options: dict[str, Any] = {
        "tile_size": 16,
        "spatial_dims": 2,
        "whole": [],
        "mesh": mesh,
        **more,
    }
    return predict_file(f"{model}.nx", "image.npy", target, **options)


def left(name: str) -> list[str]:
    """What there is of a target, after all ranks have come here."""
    dist.barrier()
    found = sorted(path.name for path in Path().iterdir() if name in path.name)
    dist.barrier()
    return found


def same_files(one: Path, other: Path) -> bool:
    """Whether two files, or all files in two folders, have equal bytes."""
    if one.is_file():
        return one.read_bytes() == other.read_bytes()
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@contextlib.contextmanager
def stopping(mesh: DeviceMesh, rank: int, after: int) -> Iterator[list[int]]:
    """Let one rank fail after some tiles; the list grows by every tile that runs here."""
    ran: list[int] = []
    plain = TiledRun.call

    def counted(self: TiledRun, tile: Any, visit: Any) -> Any:
        if mesh.get_local_rank() == rank and len(ran) == after:
            raise OSError("the disk is broken")
        ran.append(1)
        return plain(self, tile, visit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiledRun, "call", counted)
        yield ran


@case
def results_have_the_bytes_of_one_process(mesh: DeviceMesh) -> None:
    for ending in ENDINGS:
        made = predict(mesh, f"out.{ending}")
        assert (made.num_tiles, made.num_resumed) == (30, 0)
        assert same_files(Path(f"one.{ending}"), Path(f"out.{ending}")), ending
    assert left("out.") == sorted(f"out.{ending}" for ending in ENDINGS)


@case
def every_rank_runs_its_share(mesh: DeviceMesh) -> None:
    with stopping(mesh, -1, 0) as ran:
        predict(mesh, "shares.npy")
    assert len(ran) == 15


@case
def tiles_are_made_for_all_ranks(mesh: DeviceMesh) -> None:
    assert predict(mesh, "auto.npy", tile_size="auto").num_tiles == 2
    np.testing.assert_allclose(np.load("auto.npy"), np.load("one.npy"), rtol=1e-5, atol=1e-5)
    made = predict(mesh, "small.npy", tile_size="auto", memory_limit=20_000)
    assert made.num_tiles > 2
    np.testing.assert_allclose(np.load("small.npy"), np.load("one.npy"), rtol=1e-5, atol=1e-5)


@case
def a_single_tile_is_written_once(mesh: DeviceMesh) -> None:
    assert predict(mesh, "whole.npy", tile_size=500).num_tiles == 1
    np.testing.assert_allclose(np.load("whole.npy"), np.load("one.npy"), rtol=1e-5)


@case
def statistics_are_those_of_the_whole_image(mesh: DeviceMesh) -> None:
    predict(mesh, "norm.npy", "instance")
    np.testing.assert_allclose(np.load("norm.npy"), np.load("one_instance.npy"), atol=2e-5)


@case
def an_error_of_one_rank_is_raised_on_all_and_the_run_resumes(mesh: DeviceMesh) -> None:
    for rank in (0, 1):
        target = f"broken{rank}.zarr"
        with stopping(mesh, rank, 6), pytest.raises(OSError, match="the disk is broken"):
            predict(mesh, target)
        assert left(f"broken{rank}") == [f".{target}.part"]
        with pytest.raises(ValueError, match=r"same model, input and options, got run \[.*\] befo"):
            _refused(mesh, target)
        with stopping(mesh, -1, 0) as ran:
            made = predict(mesh, target)
        assert made.num_tiles == 30
        assert 12 <= made.num_resumed < 30
        assert sum(tiles_worker.everywhere(len(ran))) == 30 - made.num_resumed
        assert same_files(Path("one.zarr"), Path(target))
        assert left(f"broken{rank}") == [target]


def _refused(mesh: DeviceMesh, target: str) -> None:
    """Raise on all ranks what the first one gets without the others."""
    message = ""
    if mesh.get_local_rank() == 0:
        try:
            predict(None, target)
        except ValueError as error:
            message = str(error)
    raise ValueError(next(filter(None, tiles_worker.everywhere(message))))


@case
def parts_run_whole_are_shared_and_resumed(mesh: DeviceMesh) -> None:
    more: dict[str, Any] = {"whole": ["level.inner"]}
    with stopping(mesh, 1, 15) as ran:
        predict(mesh, "parts.npy", "unet", **more)  # in step: a call for every tile
    assert len(ran) == 15
    assert same_files(Path("one_parts.npy"), Path("parts.npy"))
    plain = TiledRun.cores
    count = []

    def cores(self: TiledRun, tile: Any, result: Any) -> Any:
        count.append(1)
        if mesh.get_local_rank() == 1 and len(count) == 4:
            raise OSError("the disk is broken")
        return plain(self, tile, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiledRun, "cores", cores)
        with pytest.raises(OSError, match="the disk is broken"):
            predict(mesh, "again.npy", "unet", **more)
    made = predict(mesh, "again.npy", "unet", **more)
    assert (made.num_tiles, made.num_resumed) == (30, 18)
    assert same_files(Path("one_parts.npy"), Path("again.npy"))


@case
def an_error_before_the_tiles_is_raised_on_all(mesh: DeviceMesh) -> None:
    missing = "image.npy" if mesh.get_local_rank() == 0 else "none.npy"
    with pytest.raises(ValueError, match=r"must be a file or folder that exists, got none.npy"):
        predict_file("blur.nx", missing, "wrong.npy", tile_size=16, mesh=mesh)
    with pytest.raises(ValueError, match=r"must call with the same options, got .* on rank 0 and"):
        predict(mesh, "wrong.npy", out_dtype="float32" if mesh.get_local_rank() else "float64")
    with pytest.raises(ValueError, match=r"target must be free, got one.npy, which exists"):
        predict(mesh, "one.npy")
    assert left("wrong") == []


@case
def a_journal_that_cannot_be_written_ends_all(mesh: DeviceMesh) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if mesh.get_local_rank() == 1:
            patch.setattr(results_file, "reserve", full)
        with pytest.raises(OSError, match="No space left on device"):
            predict(mesh, "full.npy")
    assert predict(mesh, "full.npy").num_tiles == 30
    assert same_files(Path("one.npy"), Path("full.npy"))


@case
def ranks_of_two_machines_are_refused(mesh: DeviceMesh) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: f"host{mesh.get_local_rank()}")
        words = r"must be on one machine, .*, got \['host0', 'host1'\]; TiledModel\(mesh=\) writes"
        with pytest.raises(ValueError, match=words):
            predict(mesh, "hosts.npy")
    assert left("hosts") == []
