"""One volume on two processes, beside one process in tiles and beside the whole volume.

The first process is that of the test, so memory and operations are those of one rank.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from benchmarks.beside import Beside, beside
from benchmarks.paired import measure_step, only_when_timing
from neurenix_ms import UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.execution.run.ranks import Sent

WHOLE = {"whole": ("level.inner",)}
SHARED = {"whole": (), "shared": ("level.inner", "level.inner.inner")}
WAYS: dict[str, dict[str, Any]] = {
    "in step": {"schedule": "in_step"} | WHOLE,
    "passes": {"schedule": "passes"} | WHOLE,
    "shared": {"schedule": "in_step"} | SHARED,
}
VARIANTS = ["plain", "plain, 2 threads"]
VARIANTS += [f"{name}, 1 process" for name in WAYS if name != "shared"]
VARIANTS += [f"{name}, 2 processes" for name in WAYS]
SIZES = [32, 96]


@pytest.fixture(scope="module")
def second() -> Iterator[Beside]:
    with beside() as rank:
        yield rank


@cache
def model() -> nn.Module:
    """The network, whose plan is made once per process."""
    torch.manual_seed(0)
    return UNet(1, 1, features=[8, 16], spatial_dims=3, norm="instance", remember=False)


def volume(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 1, size, size, size, generator=generator)


def inference(mesh: DeviceMesh | None, size: int, way: str) -> Callable[[], Tensor]:
    tiles = (size, size, size // 2)
    options = {"spatial_dims": 3, "mesh": mesh} | WAYS[way]
    return partial(TiledModel(model().eval(), tiles, **options), volume(size, 1))


def training(mesh: DeviceMesh | None, size: int, way: str) -> Callable[[], Tensor]:
    tiles, net = (size, size, size // 2), model()
    x, target = volume(size, 1), volume(size, 2)
    options: dict[str, Any] = {"mesh": mesh} | WAYS[way]

    def step() -> Tensor:
        net.train()
        accumulate_gradients(net, x, target, F.mse_loss, tiles, **options)
        return gradient()

    return step


def plain_inference(size: int) -> Tensor:
    with torch.no_grad():
        return model().eval()(volume(size, 1))


def plain_training(size: int) -> Tensor:
    F.mse_loss(model().train()(volume(size, 1)), volume(size, 2)).backward()
    return gradient()


def gradient() -> Tensor:
    found = torch.cat([p.grad.ravel() for p in model().parameters()])
    model().zero_grad()
    return found


def on_two_threads(call: Callable[[], Tensor]) -> Tensor:
    torch.set_num_threads(2)
    try:
        return call()
    finally:
        torch.set_num_threads(1)


TASKS = {"inference": (inference, plain_inference), "train-step": (training, plain_training)}


@pytest.mark.benchmark(group="domain")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_domain(variant, task, size, measure, benchmark, request, second):
    """A 3-D U-Net with instance norm in two tiles, the deep levels run whole or shared."""
    if size > SIZES[0]:
        only_when_timing(request)
    benchmark.group = f"domain/{task}"
    tiled, whole = TASKS[task]
    plain = partial(whole, size)
    ways: dict[str, Callable[[], Tensor]] = {"plain": plain}
    if variant == "plain, 2 threads":
        ways[variant] = partial(on_two_threads, plain)
    elif "plain" not in variant:
        name, processes = variant.split(", ")
        args = size, name
        shared = processes == "2 processes"
        ways[variant] = second.together(tiled, *args) if shared else tiled(None, *args)
        with Sent() as sent:
            wanted, got = plain(), ways[variant]()
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
        if shared:
            benchmark.extra_info |= {"sent_bytes": sent.bytes, "collectives": sent.calls}
        if shared and not request.config.getoption("benchmark_disable"):
            benchmark.extra_info |= cpu_of_both(ways[variant], second)
    measure_step(measure, ways, variant, volume(size, 1), model(), rounds=3)


def cpu_of_both(call: Callable[[], Tensor], second: Beside, rounds: int = 3) -> dict[str, float]:
    """Return the CPU time of both processes, and that of the busier one."""
    both, busier = [], []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times = time.process_time() - start, second.cpu_seconds
        both.append(sum(times))
        busier.append(max(times))
    return {
        "cpu_seconds_of_both": statistics.median(both),
        "cpu_seconds_of_the_busier": statistics.median(busier),
    }
