"""The loss curve does not depend on the number of processes, or on interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Callback

from neurenix_ms import load
from neurenix_ms.recipes.distributed.command import BatchesOfSteps, NoisyWaves, main

MODULE = "neurenix_ms.recipes.distributed"
ROOT = Path(__file__).parents[2]
SMALL = ["--images", "10", "--size", "8", "--batch-size", "4", "--accelerator", "cpu", "--quiet"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MODULE]


class Stop(Callback):
    """Raise after a number of steps, as a crash would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, task, batch, batch_index):
        if trainer.global_step == self.steps:
            raise RuntimeError("stopped")


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load(folder / "model.nx").state_dict().values())


def curve(folder: Path) -> list[float]:
    return json.loads((folder / "curve.json").read_text())


def equal(one: Path, other: Path) -> bool:
    pairs = zip(weights(one), weights(other), strict=True)
    return curve(one) == curve(other) and all(torch.equal(a, b) for a, b in pairs)


def start(command: list[str], options: list[str], out: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "NODE_RANK"):
        environment.pop(name, None)  # Lightning leaves them behind
    full = [sys.executable, "-m", *command, *options, "--out", str(out)]
    return subprocess.Popen(full, env=environment, cwd=ROOT, start_new_session=True)


def test_a_sample_is_determined_by_its_index():
    noisy, clean = NoisyWaves(5, 16, seed=1)[3]
    assert noisy.shape == clean.shape == (1, 16, 16)
    assert torch.equal(noisy, NoisyWaves(9, 16, seed=1)[3][0])
    assert not torch.equal(noisy, NoisyWaves(5, 16, seed=2)[3][0])
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_batch_of_every_step(world_size):
    whole = list(BatchesOfSteps(10, 6, 7, seed=3))
    shares = [
        list(BatchesOfSteps(10, 6, 7, rank=rank, world_size=world_size, seed=3))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert sorted(i for share in shares for i in share[step]) == sorted(batch)
        assert {len(share[step]) for share in shares} == {6 // world_size}


def test_an_epoch_has_every_sample_once_in_its_own_order():
    stream = [i for batch in BatchesOfSteps(10, 4, 5) for i in batch]  # 20 of them: two passes
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


@pytest.mark.parametrize("first", [1, 3, 6])
def test_the_batches_of_later_steps_do_not_need_the_earlier_ones(first):
    whole = BatchesOfSteps(10, 4, 7)
    assert list(BatchesOfSteps(10, 4, 7, first)) == list(whole)[first:]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    options = [*SMALL, "--steps", "5", "--checkpoint-every", "2"]
    losses = main([*options, "--out", str(tmp_path / "whole")])
    assert len(losses) == 5
    with pytest.raises(RuntimeError, match="stopped"):
        main([*options, "--out", str(tmp_path / "stopped")], [Stop(3)])
    assert not (tmp_path / "stopped/model.nx").exists()
    assert main([*options, "--out", str(tmp_path / "stopped")]) == losses
    assert equal(tmp_path / "whole", tmp_path / "stopped")


def test_the_checkpoint_of_another_run_raises(tmp_path):
    options = [*SMALL, "--steps", "1", "--checkpoint-every", "1", "--out", str(tmp_path)]
    main(options)
    words = r"the checkpoint in --out must be of a run with \{.*'seed': 1\}, got \{.*'seed': 0\}"
    with pytest.raises(ValueError, match=words):
        main([*options, "--seed", "1"])
    main([*options, "--seed", "1", "--fresh"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batch-size", "3", "--devices", "2"], "multiple of the 2 processes, got 3"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--size", "3"], "--size must be at least 4, got 3"),
    ],
)
def test_wrong_options_raise(wrong, message, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", [[MODULE, "--devices", "2"], TORCHRUN], ids=["own", "torchrun"])
def test_two_processes_have_the_loss_curve_of_one(command, tmp_path):
    options = [*SMALL, "--steps", "12", "--precision", "64-true"]
    assert start([MODULE], options, tmp_path / "one").wait(300) == 0
    assert start(command, options, tmp_path / "two").wait(300) == 0
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 12
    assert one[-1] < 0.8 * one[0]
    assert two == pytest.approx(one, rel=1e-9)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("command", [[MODULE], TORCHRUN], ids=["one", "two"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(command, tmp_path):
    options = [*SMALL, "--steps", "200", "--checkpoint-every", "7"]
    assert start(command, options, tmp_path / "whole").wait(300) == 0
    run = start(command, options, tmp_path / "killed")
    last = tmp_path / "killed/last.ckpt"
    while not last.exists():
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL
    assert 7 <= torch.load(last, weights_only=False)["global_step"] < 200
    assert not (tmp_path / "killed/model.nx").exists()
    assert start(command, options, tmp_path / "killed").wait(300) == 0
    assert equal(tmp_path / "whole", tmp_path / "killed")
