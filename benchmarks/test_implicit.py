"""Neural implicit flow compared with one weight vector per point, and compact with masked models."""

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.paired import assert_equal, measure_step, only_when_timing
from benchmarks.plain_implicit import OneWeightVectorPerPoint
from neurenix_ms.implicit import NIF, MultiScaleNIF, compact, prune_nodes

POINTS = [1000, 10_000]  # for a 64x4 network; the plain implementation needs 70 KB per point
TIMES = 10
NETS = {"NIF": NIF, "MultiScaleNIF": MultiScaleNIF}


def ways(net: str) -> dict[str, torch.nn.Module]:
    ours = NETS[net](1, 2, shape_width=64, shape_depth=4, latent_dim=3)
    return {"plain": OneWeightVectorPerPoint(ours), "ours": ours}


def pairs(num_points: int) -> tuple[Tensor, Tensor]:
    return torch.rand(num_points, 1), torch.rand(num_points, 2)


def grid(num_points: int) -> tuple[Tensor, Tensor]:
    return torch.rand(TIMES, 1), torch.rand(num_points // TIMES, 2)


def without_gradients(call, *args: Tensor) -> Tensor:
    with torch.no_grad():
        return call(*args)


def on_a_grid(models: dict[str, torch.nn.Module], p: Tensor, x: Tensor) -> dict:
    """Return calls without arguments that evaluate every model on a grid."""
    return {
        name: partial(without_gradients, model.forward_grid, p, x) for name, model in models.items()
    }


def step(model: torch.nn.Module, call, *args: Tensor) -> None:
    call(*args).square().mean().backward()
    model.zero_grad()


@pytest.mark.benchmark(group="implicit/paired")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("net", NETS)
def test_paired_points(net, points, variant, measure, request):
    if points > POINTS[0]:
        only_when_timing(request)
    models, (p, x) = ways(net), pairs(points)
    assert_equal(*(without_gradients(model, p, x) for model in models.values()))
    calls = {name: partial(without_gradients, model, p, x) for name, model in models.items()}
    measure_step(measure, calls, variant, x, models[variant], 10, items=points)


@pytest.mark.benchmark(group="implicit/grid")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("net", NETS)
def test_grid(net, points, variant, measure, request):
    if points > POINTS[0]:
        only_when_timing(request)
    models, (p, x) = ways(net), grid(points)
    assert_equal(*(without_gradients(model.forward_grid, p, x) for model in models.values()))
    calls = on_a_grid(models, p, x)
    measure_step(measure, calls, variant, x, models[variant], 10, items=points)


@pytest.mark.benchmark(group="implicit/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("kind", ["pairs", "grid"])
def test_train_step(kind, points, variant, measure, request):
    if points > POINTS[0]:
        only_when_timing(request)
    models = ways("MultiScaleNIF")
    p, x = pairs(points) if kind == "pairs" else grid(points)
    steps = {
        name: partial(step, model, model if kind == "pairs" else model.forward_grid, p, x)
        for name, model in models.items()
    }
    rounds = 10 if points == POINTS[0] else 4
    measure_step(measure, steps, variant, x, models[variant], rounds, items=points)


def pruned(net: str, share: float) -> dict[str, torch.nn.Module]:
    masked = NETS[net](1, 1, shape_width=64, shape_depth=4, latent_dim=3)
    with torch.no_grad():  # prune nodes of all layers equally, as after training
        masked.last.weight.normal_()
        matrices, _ = masked.shape.slices()
        masked.last.weight[matrices[0]] *= 8
        masked.last.bias.zero_()
    prune_nodes(masked, share, torch.rand(50, 1))
    return {"plain": masked, "ours": compact(masked)}


@pytest.mark.benchmark(group="implicit/compact")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("pruned_percent", [50, 80])
@pytest.mark.parametrize("net", NETS)
def test_compact(net, pruned_percent, variant, measure):
    models = pruned(net, pruned_percent / 100)
    p, x = torch.rand(10, 1), torch.rand(1000, 1)
    calls = on_a_grid(models, p, x)
    measure_step(measure, calls, variant, x, models[variant], 10, items=10_000)
