"""Predictions whose tiles several processes share, against those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import prediction_worker
import pytest
import torch
import torch.multiprocessing as processes
from prediction_worker import CASES, ENDINGS, predict, same_files

import neurenix_ms as nms

ROOT = Path(__file__).parents[2]


def prepare(folder: Path) -> None:
    """Models, an image, and what one process predicts."""
    before = Path.cwd()
    os.chdir(folder)
    torch.manual_seed(0)
    nms.save(nms.BlurPool(1), "blur.nx")  # for which a plan is found at once
    for name, norm in (("unet", "batch"), ("instance", "instance")):
        nms.save(nms.UNet(1, 2, features=[2], norm=norm).eval(), f"{name}.nx")
    np.save("image.npy", np.random.default_rng(0).integers(0, 255, (90, 70), "uint8"))
    try:
        for ending in ENDINGS:
            predict(None, f"one.{ending}")
        predict(None, "one_instance.npy", "instance")
        predict(None, "one_parts.npy", "unet", whole=["level.inner"])
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    pytest.importorskip("zarr")
    pytest.importorskip("h5netcdf")
    folder = tmp_path_factory.mktemp("ranks")
    prepare(folder)
    processes.spawn(prediction_worker.start, (2, str(folder), list(CASES)), nprocs=2)
    return [json.loads((folder / f"report{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(reports: list[dict[str, str]], name: str):
    assert [report[name] for report in reports] == ["", ""]


def torchrun(folder: Path, *words: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "neurenix_ms.command", "predict", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_command_says_one_line_and_resumes_after_a_kill(tmp_path: Path):
    prepare(tmp_path)
    words = ["blur.nx", "image.npy", "out.zarr", "--tile", "16", "--spatial-dims", "2", "--quiet"]
    said, errors = (run := torchrun(tmp_path, *words)).communicate(timeout=120)
    assert run.returncode == 0, errors
    assert said == "out.zarr: shape (1, 1, 45, 35), float32, 30 tiles\n"
    assert same_files(tmp_path / "one.zarr", tmp_path / "out.zarr")
    _, errors = (run := torchrun(tmp_path, *words)).communicate(timeout=120)
    assert run.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("neurenix-ms predict: ")]
    assert len(lines) == 1
    assert "target must be free, got out.zarr" in lines[0]
    _, errors = torchrun(tmp_path, *words, "--steps", "2").communicate(timeout=120)
    assert "torchrun shares tiles of images and volumes, got states or points" in errors
    np.save(tmp_path / "image.npy", np.tile(np.load(tmp_path / "image.npy"), (12, 12)))
    os.chdir(tmp_path)
    predict(None, "large.zarr")
    words[2] = "killed.zarr"
    run = torchrun(tmp_path, *words)
    journals = [tmp_path / ".killed.zarr.part" / name for name in ("journal", "journal-1")]
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(
        one.exists() and len(one.read_text().splitlines()) > 1 for one in journals
    ):
        time.sleep(0.001)
    for worker in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)  # they have sessions of their own
    run.communicate()
    assert not (tmp_path / "killed.zarr").exists()
    said, errors = torchrun(tmp_path, *words).communicate(timeout=200)
    assert "of them by an earlier run" in said, errors
    assert same_files(tmp_path / "large.zarr", tmp_path / "killed.zarr")
