"""Tiles shared among several processes, against one process and the whole input."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiles_worker
import torch
import torch.multiprocessing as processes
from tiles_worker import CASES, MANY

from neurenix_ms import UNet


def run(size: int, folder: Path, names: list[str]) -> list[dict[str, str]]:
    """What went wrong in each case, by rank."""
    processes.spawn(tiles_worker.start, (size, str(folder), names), nprocs=size)
    return [json.loads((folder / f"report{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all quick cases have written."""
    path: Path = tmp_path_factory.mktemp("ranks")
    run(2, path, list(CASES))
    return path


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(folder, name):
    reports = [json.loads((folder / f"report{rank}.json").read_text()) for rank in (0, 1)]
    assert [report[name] for report in reports] == ["", ""]


@pytest.mark.slow
def test_another_launch_gives_the_same_bits(folder, tmp_path):
    """Results, losses, gradients and buffers, in passes, in step and with shared parts."""
    names = ["batch_norm_in_training", "instance_norm_and_a_part_run_whole", "shared_parts"]
    assert run(2, tmp_path, names) == [dict.fromkeys(names, "")] * 2
    first, second = (
        json.loads((path / "digests0.json").read_text()) for path in (folder, tmp_path)
    )
    assert [len(second[name]) for name in names] == [2, 2, 2]
    assert {name: first[name] for name in names} == second


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Callable[[int], list[dict[str, str]]]:
    @cache
    def of(size: int) -> list[dict[str, str]]:
        names = [name for name in [*CASES, *MANY] if runs_on(size, name)]
        return run(size, tmp_path_factory.mktemp("ranks"), names)

    return of


def runs_on(size: int, name: str) -> bool:
    return name != "a_task_under_ddp" or size % 2 == 0  # groups of two ranks


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *MANY])
@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks(reports, size, name):
    if not runs_on(size, name):
        pytest.skip("needs pairs of ranks")
    assert [report[name] for report in reports(size)] == [""] * size


@pytest.mark.slow
def test_wrong_steps_of_two_ranks_are_seen(tmp_path):
    assert run(2, tmp_path, ["wrong_steps_are_seen"]) == [{"wrong_steps_are_seen": ""}] * 2


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=tiles_worker.die, args=(r, 2, str(tmp_path))) for r in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, -signal.SIGKILL]
    assert (tmp_path / "rank0").read_text() == "RuntimeError, gradients and buffers unchanged"


@pytest.mark.slow
def test_the_script_of_the_tutorial(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tutorials" / "tiles.md").read_text()
    (script,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"\$ torchrun (.*)", page)
    (tmp_path / "predict.py").write_text(script)
    scan = np.memmap(tmp_path / "scan", "uint8", "w+", shape=(1, 1, 180, 150))
    scan[:] = np.random.default_rng(0).integers(0, 4, scan.shape)
    scan.flush()
    np.memmap(tmp_path / "labels", "uint8", "w+", shape=(1, 180, 150))[:] = 9
    paths = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *command.split()]
    subprocess.run(torchrun, check=True, cwd=tmp_path, env=environment, timeout=120)
    torch.manual_seed(0)
    model = UNet(1, 2, features=[4, 8], norm="instance").eval()
    with torch.no_grad():
        wanted = model(torch.from_numpy(np.array(scan)).float()).argmax(1)
    labels = np.memmap(tmp_path / "labels", "uint8", "r", shape=(1, 180, 150))
    assert (labels != wanted.numpy()).mean() < 1e-3  # logits that differ by rounding
