"""Exact tiles compared with the whole image and with blended windows."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.paired import measure_forward, measure_step, only_when_timing
from neurenix_ms import UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients

SIZE, TILE = 512, 128


def blended(model: torch.nn.Module, x: Tensor) -> Tensor:
    inferers = pytest.importorskip("monai.inferers", reason="the peer needs monai")
    return inferers.sliding_window_inference(x, (TILE, TILE), 4, model, 0.5, mode="gaussian")


@pytest.mark.benchmark(group="memory/tiles")
@pytest.mark.parametrize("variant", ["plain", "tiles", "deep part whole", "monai"])
def test_memory_tiles(variant, measure, benchmark):
    """Forward pass of a three-level U-Net on 512 x 512 pixels; `plain` is the whole image."""
    model = UNet(1, 1, features=[16, 32, 64], remember=False).eval()
    x = torch.randn(1, 1, SIZE, SIZE)
    ways = {
        "plain": model,
        "tiles": TiledModel(model, TILE, whole=(), schedule="passes"),
        "deep part whole": TiledModel(model, TILE, whole=("level.inner.inner",), schedule="passes"),
        "monai": lambda x: blended(model, x),
    }
    with torch.no_grad():
        wanted, got = model(x), ways[variant](x)
        off = ((got - wanted).abs().max() / wanted.std()).item()
        assert variant == "monai" or off < 1e-4
        benchmark.extra_info["error_in_std"] = off
        calls = {name: partial(way, x) for name, way in ways.items()}
        measure_step(measure, calls, variant, x, model, rounds=3)


@pytest.mark.benchmark(group="memory/schedules")
@pytest.mark.parametrize("variant", ["plain", "passes", "in step"])
@pytest.mark.parametrize("size", [256, 1024])
def test_memory_schedules(size, variant, measure, request):
    """Forward pass of a U-Net with instance norm in four tiles; `plain` is the whole image."""
    if size > 256:
        only_when_timing(request)
    model = UNet(1, 1, features=[8, 16, 32], norm="instance", remember=False).eval()
    ways = {
        "plain": model,
        "passes": TiledModel(model, size // 2, whole=(), schedule="passes"),
        "in step": TiledModel(model, size // 2, whole=(), schedule="in_step"),
    }
    measure_forward(measure, ways, variant, torch.randn(1, 1, size, size), rounds=3)


@pytest.mark.benchmark(group="memory/train")
@pytest.mark.parametrize("variant", ["plain", "deep part whole"])
@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize("size", [32, 96])
def test_memory_train(size, norm, variant, measure, request):
    """Gradients of a 3-D U-Net in tiles of half the edge; `plain` is the whole volume."""
    if size > 32:
        only_when_timing(request)
    model = UNet(1, 1, features=[8, 16], spatial_dims=3, norm=norm, remember=False)
    x, target = torch.randn(2, 1, 1, size, size, size)

    def plainly() -> None:
        F.mse_loss(model(x), target).backward()

    def in_tiles() -> None:
        whole = ("level.inner",)
        accumulate_gradients(model, x, target, F.mse_loss, size // 2, whole=whole)

    steps = {"plain": plainly, "deep part whole": in_tiles}
    steps[variant]()
    got = [p.grad for p in model.parameters()]
    model.zero_grad()
    F.mse_loss(model(x), target).backward()
    most = max(p.grad.abs().max() for p in model.parameters())
    for p, gradient in zip(model.parameters(), got, strict=True):
        assert (p.grad - gradient).abs().max() < 1e-3 * most
    measure_step(measure, steps, variant, x, model, rounds=2)
