"""Gradients found tile by tile against those of the whole map."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import random_network
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from neurenix_ms import PyramidNetwork, UNet, enable_gradient_checkpointing
from neurenix_ms.execution import accumulate_gradients
from neurenix_ms.execution.plan.statistics import Normalization
from neurenix_ms.meter import peak_tensor_bytes

EXACT = 1e-9  # of the largest gradient, in float64


def summed(difference):
    """A loss over all outputs of a model."""

    def loss(outputs, targets) -> Tensor:
        pairs = zip(tree_leaves(outputs), tree_leaves(targets), strict=True)
        return sum(difference(y, t) for y, t in pairs)

    return loss


def both(model: nn.Module, x: Tensor, tile, loss, target=None, **options):
    """Differences of gradients (in parts of the largest), of the loss, and of the buffers."""
    plain, tiled = copy.deepcopy(model), copy.deepcopy(model)
    output = plain(x.clone())
    if target is None:
        leaves, structure = tree_flatten(output)
        target = tree_unflatten([torch.randn_like(y) for y in leaves], structure)
    wanted = loss(output, target)
    wanted.backward()
    got = accumulate_gradients(tiled, x, target, loss, tile, **options)
    grads = [
        (torch.zeros_like(a) if a.grad is None else a.grad, b.grad)
        for a, b in zip(plain.parameters(), tiled.parameters(), strict=True)
    ]
    most = max(a.abs().max() for a, _ in grads)
    zeros = [(a, torch.zeros_like(a) if b is None else b) for a, b in grads]
    apart = max(((a - b).abs().max() / most).item() for a, b in zeros)
    pairs = zip(plain.buffers(), tiled.buffers(), strict=True)
    moved = max(((a - b).abs().max().item() for a, b in pairs if a.numel()), default=0.0)
    return apart, abs((wanted - got) / wanted).item(), moved


def unet(norm=None, **options) -> UNet:
    return UNet(1, 2, features=[4, 6], norm=norm, **options).double().train()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), dims=st.sampled_from([1, 1, 2]))
def test_random_networks(seed, dims):
    draw = random.Random(seed)
    model = random_network(seed, dims, several=False).double().train(draw.random() < 0.7)
    size = {1: (60, 150), 2: (30, 50)}[dims]
    x = torch.randn(2, 1, *(draw.randint(*size) for _ in range(dims)), dtype=torch.float64)
    try:
        output = copy.deepcopy(model)(x.clone())
        if not output.requires_grad:
            return
        output.sum().backward()
    except (RuntimeError, ValueError):
        return  # the map is too small for this network, or it writes over what backward needs
    loss = F.mse_loss if draw.random() < 0.5 else lambda y, t: (y * t).tanh().sum()
    try:
        apart, off, moved = both(
            model, x, draw.randint(8, 30), loss, whole=draw.choice([(), "auto"])
        )
    except ValueError as error:
        assert "be shift-equivariant by the stride" in str(error)  # noqa: PT017
        return
    assert apart < 1e-8
    assert off < 1e-9
    assert moved < 1e-10


@pytest.mark.parametrize("norm", [None, "batch", "instance", "group"])
@pytest.mark.parametrize("whole", [(), ("level.inner",)])
def test_every_norm(norm, whole):
    x = torch.randn(2, 1, 43, 38, dtype=torch.float64)
    apart, off, moved = both(unet(norm), x, 16, F.mse_loss, whole=whole)
    assert apart < EXACT
    assert off < 1e-12
    assert moved < 1e-12


def test_batch_norm_in_eval_mode():
    x = torch.randn(2, 1, 43, 38, dtype=torch.float64)
    apart, _, moved = both(unet("batch").eval(), x, 16, F.mse_loss)
    assert apart < EXACT
    assert moved == 0


@pytest.mark.slow
def test_in_three_dimensions():
    x = torch.randn(1, 1, 22, 26, 20, dtype=torch.float64)
    model = unet("instance", spatial_dims=3)
    assert both(model, x, 12, F.l1_loss, whole=("level.inner",))[0] < EXACT


def test_several_outputs():
    model = PyramidNetwork(1, 2, base_channels=4, return_pyramid=True).double()
    x = torch.randn(1, 1, 40, 56, dtype=torch.float64)
    assert both(model, x, 16, summed(F.mse_loss))[0] < EXACT


@pytest.mark.slow
def test_a_sum_and_labels():
    x = torch.randn(2, 1, 43, 38, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, 43, 38))
    assert both(unet("group"), x, 16, F.cross_entropy, labels)[0] < EXACT

    def total(y, t):
        return F.cross_entropy(y, t, weight=torch.tensor([1.0, 3.0]).double(), reduction="sum")

    assert both(unet("group"), x, 16, total, labels)[0] < EXACT
    assert both(unet("group"), x, 16, total, labels, reduction="sum")[0] < EXACT


def test_a_perfect_prediction_does_not_hide_the_reduction():
    model = nn.Conv1d(1, 1, 1).double()
    x = torch.randn(1, 1, 64, dtype=torch.float64)
    target = model(x).detach()
    target[..., 40:] += 1
    apart, off, _ = both(model, x, 8, F.mse_loss, target)
    assert apart < EXACT
    assert off < 1e-12


def test_gradients_are_added():
    model, x = unet(), torch.randn(1, 1, 40, 40, dtype=torch.float64)
    target = torch.zeros(1, 2, 40, 40, dtype=torch.float64)
    once = accumulate_gradients(model, x, target, F.mse_loss, 16)
    first = [p.grad.clone() for p in model.parameters()]
    assert torch.equal(once, accumulate_gradients(model, x, target, F.mse_loss, 16))
    for p, g in zip(model.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


@pytest.mark.slow
def test_frozen_parameters_stay_without_gradient():
    model = unet("instance")
    model.level.encode.requires_grad_(False)
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)
    assert both(model, x, 16, F.mse_loss)[0] < EXACT
    accumulate_gradients(model, x, torch.zeros(1, 2, 40, 40).double(), F.mse_loss, 16)
    assert all(p.grad is None for p in model.level.encode.parameters())


@pytest.mark.slow
def test_arrays_and_checkpointing_around_it():
    model, x = unet("batch").float(), np.random.default_rng(0).normal(size=(1, 1, 40, 40))
    target = np.zeros((1, 2, 40, 40))
    with enable_gradient_checkpointing():
        accumulate_gradients(model, x, target, F.mse_loss, 16)
    other = copy.deepcopy(model)
    other.zero_grad()
    F.mse_loss(other(torch.tensor(x).float()), torch.zeros(1, 2, 40, 40)).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_training_tile_by_tile_is_training():
    plain, tiled = unet("group"), None
    tiled = copy.deepcopy(plain)
    x, target = torch.randn(1, 1, 40, 40).double(), torch.randn(1, 2, 40, 40).double()
    steps = [torch.optim.SGD(m.parameters(), 0.1) for m in (plain, tiled)]
    for _ in range(3):
        for step in steps:
            step.zero_grad()
        F.mse_loss(plain(x.clone()), target).backward()
        accumulate_gradients(tiled, x, target, F.mse_loss, 16)
        for step in steps:
            step.step()
    for p, q in zip(plain.parameters(), tiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_dropped_adjoint_of_the_variance_is_seen(monkeypatch):
    seed = Normalization.seed
    monkeypatch.setattr(
        Normalization, "seed", lambda s, core, m, d_mean, d_var: seed(s, core, m, d_mean, 0 * d_var)
    )
    x = torch.randn(2, 1, 43, 38, dtype=torch.float64)
    assert both(unet("instance"), x, 16, F.mse_loss)[0] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("norm", [None, "instance"])
def test_memory_does_not_grow_with_the_map(norm):
    model = unet(norm)

    def peak(n: int) -> int:
        x, target = torch.randn(1, 1, n, n).double(), torch.randn(1, 2, n, n).double()
        accumulate_gradients(model, x, target, F.mse_loss, 32)
        return peak_tensor_bytes(lambda: accumulate_gradients(model, x, target, F.mse_loss, 32))

    assert peak(160) <= 1.01 * peak(128)


def weighted(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y, t, weight=torch.tensor([1.0, 3.0], dtype=y.dtype))


def ignoring(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y, torch.where(t == 1, -100, t))


def by_the_variance(y: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(y[:, 0], t.to(y.dtype)) / y.var()


@pytest.mark.parametrize("loss", [weighted, ignoring, by_the_variance])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_loss_that_is_neither_mean_nor_sum_is_refused(loss, mixed):
    labels = torch.zeros(1, 64, 40, dtype=torch.long)
    if mixed:
        labels = (torch.rand(1, 64, 40) < 0.3).long()
    else:  # every tile holds one class
        labels[:, 32:] = 1
    x = torch.randn(1, 1, 64, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"loss must be a (mean|sum)"):
        accumulate_gradients(unet(), x, labels, loss, (32, 40))


def test_every_message():
    x = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"one of \[\(40, 40\)\], got shape \(1, 2, 39, 40\)"):
        accumulate_gradients(unet(), x, torch.zeros(1, 2, 39, 40), F.mse_loss, 16)
    with pytest.raises(ValueError, match=r"loss must be a sum of a local term"):
        accumulate_gradients(
            unet(), x, torch.zeros(1, 2, 40, 40).double(), F.mse_loss, 16, reduction="sum"
        )
    with pytest.raises(ValueError, match=r"reduction must be one of .* got 'median'"):
        accumulate_gradients(unet(), x, x, F.mse_loss, 16, reduction="median")
    with pytest.raises(
        ValueError, match=r"x must be a tensor or an array that can be sliced, got list"
    ):
        accumulate_gradients(unet(), [1], x, F.mse_loss, 16)
    with pytest.raises(ValueError, match=r"no layer .* random, got 'level.encode.dropout.dropout'"):
        accumulate_gradients(unet(dropout=0.1), x, x, F.mse_loss, 16)


def test_gradients_where_what_follows_writes_over_the_result_of_a_part():
    convs = [nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 3, padding=1)]
    plain = nn.Sequential(convs[0], nn.CELU(inplace=True), convs[1]).double()
    tiled, x = copy.deepcopy(plain), torch.randn(2, 1, 61, dtype=torch.float64)
    F.mse_loss(plain(x), 2 * x).backward()
    accumulate_gradients(tiled, x, 2 * x, F.mse_loss, 8, whole=("0",))
    for p, q in zip(plain.parameters(), tiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
