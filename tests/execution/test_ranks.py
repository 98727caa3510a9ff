"""Tiles shared among several processes, against one process and the whole input."""

import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import tiles_worker
import torch.multiprocessing as processes
from tiles_worker import CASES, MANY


def run(size: int, folder: Path, names: list[str]) -> list[dict[str, str]]:
    """What went wrong in each case, by rank."""
    processes.spawn(tiles_worker.start, (size, str(folder), names), nprocs=size)
    return [json.loads((folder / f"report{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[str, str]]:
    return run(2, tmp_path_factory.mktemp("ranks"), list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(two_ranks, name):
    assert [report[name] for report in two_ranks] == ["", ""]


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory) -> list[dict[str, str]]:
    return run(4, tmp_path_factory.mktemp("ranks"), [*CASES, *MANY])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *MANY])
def test_four_ranks(four_ranks, name):
    assert [report[name] for report in four_ranks] == [""] * 4


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
