"""Functions that write to their inputs do not change the caller's tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from neurenix_ms import MultiScaleModel, enable_gradient_checkpointing
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.backbones import Backbone
from neurenix_ms.conservation import rollout
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.timestepping import HierarchicalTimeStepper, IntegratorStepper, TimeStepper
from neurenix_ms.timestepping.banks import OneByOne
from neurenix_ms.timestepping.run import WindowLoss
from neurenix_ms.training import DeepSupervisionLoss, MultiScaleInference, MultiScaleLoss


class Writing(nn.Module):
    """Subtracts its mean from its input, in place."""

    def forward(self, x):
        return x.sub_(x.mean())


class Using(nn.Module):
    """Uses its input again."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + 2 * call_intact(self.inner, x)


WRITERS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "sub": Writing,
    "view": lambda: nn.Sequential(nn.Flatten(), nn.Hardtanh(inplace=True), nn.Unflatten(1, (3, 4))),
    "later": lambda: nn.Sequential(nn.Identity(), nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 4)),
}


def wanted(inner, x):
    return x + 2 * inner(x.clone())


INPUTS = {
    "plain": lambda: torch.randn(2, 3, 4),
    "leaf": lambda: torch.randn(2, 3, 4, requires_grad=True),
    "strided": lambda: torch.randn(2, 4, 3).transpose(1, 2),
    "part": lambda: torch.randn(4, 5, 6)[1:3, :3, 2:],
    "numpy": lambda: torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4)).astype("f4")),
    "shared": lambda: torch.randn(2, 3, 4).share_memory_(),
    "parameter": lambda: nn.Parameter(torch.randn(2, 3, 4)),
    "negative view": lambda: torch.randn(2, 3, 4, dtype=torch.cfloat).conj().imag,
    "double": lambda: torch.randn(2, 3, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", WRITERS)
def test_the_input_stays_as_it_was(name: str, kind: str):
    x = INPUTS[kind]()
    inner = WRITERS[name]().to(x.dtype)
    before = x.detach().clone()
    expected = wanted(inner, x)
    y = Using(inner)(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, expected)
    if x.requires_grad:
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
        torch.testing.assert_close(grad, expected_grad)


def test_a_conjugated_input_keeps_its_values():
    x = torch.randn(3, dtype=torch.cfloat).conj()
    before = x.resolve_conj().clone()
    assert torch.equal(call_intact(lambda z: z.mul_(2), x), 2 * before)
    assert torch.equal(x, before)


@pytest.mark.parametrize("grad", [True, False])
def test_what_writes_to_nothing_costs_no_memory(grad: bool):
    x = torch.randn(2, 8, 16, 16)
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    with torch.set_grad_enabled(grad):
        for inner in (*layers, nn.Sequential(*layers)):
            assert peak_tensor_bytes(lambda inner=inner: call_intact(inner, x)) == (
                peak_tensor_bytes(lambda inner=inner: inner(x))
            )
        more = peak_tensor_bytes(lambda: call_intact(nn.ReLU(inplace=True), x))
        assert more == x.numel() * x.element_size()


def test_containers_are_protected_too():
    x, y = torch.ones(2), torch.ones(3)

    def write(pair, named, number):
        for t in (*pair, *named.values()):
            t.add_(number)
        return pair[0] + named["y"][:2]

    assert call_intact(write, [x], {"y": y}, 2).tolist() == [6, 6]
    assert x.tolist() == [1, 1]
    assert y.tolist() == [1, 1, 1]


WAYS = ["compile", "export", "fx", "trace", "vmap", "inference"]
RUNS = [(name, way) for name in WRITERS for way in WAYS if (name, way) != ("view", "vmap")]
RUNS += [pytest.param(name, "inductor", marks=pytest.mark.slow) for name in ("relu", "later")]


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_inputs_are_protected_in_every_way_of_running(name: str, way: str):
    torch.compiler.reset()
    inner = WRITERS[name]().eval()
    model = Using(inner)
    x = torch.randn(2, 3, 4)
    before = x.clone()
    if way == "vmap":
        expected = torch.stack([wanted(inner, row) for row in x])
        y = torch.vmap(model)(x)
    else:
        expected = wanted(inner, x)
        if way == "inference":
            with torch.inference_mode():
                y = model(x)
                z = x + 0
                assert torch.equal(model(z), y)
                assert torch.equal(z, before)
        else:
            y = recorded(model, way)(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, expected)


def recorded(model, way):
    if way == "compile":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    if way == "inductor":
        return torch.compile(model, fullgraph=True)
    if way == "export":
        return torch.export.export(model, (torch.randn(2, 3, 4),)).module()
    if way == "fx":
        return torch.fx.symbolic_trace(model)
    return torch.jit.trace(model, torch.randn(2, 3, 4))


def plain(inner):
    """The same network that never writes."""
    return lambda x: inner(x.clone())


IMAGE_WRITERS = {
    "relu": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3, padding=1)),
    "sub": lambda: nn.Sequential(Writing(), nn.Conv2d(2, 2, 3, padding=1)),
}


@pytest.mark.parametrize("name", IMAGE_WRITERS)
@pytest.mark.parametrize("method", ["concat", "mean", "attention"])
@pytest.mark.parametrize("switched", [False, True])
def test_every_scale_of_a_model_gets_the_original_input(name: str, method: str, switched: bool):
    inner = IMAGE_WRITERS[name]()
    scales = [1.0, 0.5, 1.0]
    model = MultiScaleModel(scales, inner, method, channels=2)
    x = torch.randn(2, 2, 12, 8)
    before = x.clone()
    outs = [model.align(plain(inner)(model.shrink.at_scale(x, s).clone()), (12, 8)) for s in scales]
    expected = torch.cat(outs, 1) if method == "concat" else torch.stack(outs).mean(0)
    with enable_gradient_checkpointing(switched):
        y = model(x)
    torch.testing.assert_close(y, expected)
    assert torch.equal(x, before)
    parameters = list(inner.parameters())
    grads = torch.autograd.grad(y.square().sum(), parameters)
    wanted_grads = torch.autograd.grad(expected.square().sum(), parameters)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("name", IMAGE_WRITERS)
def test_every_scale_and_mirror_of_an_average_gets_the_original_input(name: str):
    inner = IMAGE_WRITERS[name]()
    average = MultiScaleInference(inner, [1.0, 0.5], flips=[0, -1])
    reference = MultiScaleInference(plain(inner), [1.0, 0.5], flips=[0, -1])
    x = torch.randn(2, 2, 12, 8)
    before = x.clone()
    torch.testing.assert_close(average(x), reference(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["relu", "sub"])
def test_a_stepper_adds_the_change_to_the_state(name: str):
    inner = nn.Sequential(WRITERS[name](), nn.Linear(4, 4))
    stepper = TimeStepper(inner, 2)
    x = torch.randn(5, 4)
    before = x.clone()
    torch.testing.assert_close(stepper(x), x + plain(inner)(x))
    assert torch.equal(x, before)
    hierarchy = HierarchicalTimeStepper([stepper, TimeStepper(inner, 5)])

    class Reference(nn.Module):
        def forward(self, x):
            return inner(x.clone())

    reference = HierarchicalTimeStepper([TimeStepper(Reference(), stride) for stride in (2, 5)])
    torch.testing.assert_close(hierarchy(x, 13), reference(x, 13))
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", ["rk4", "euler"])
def test_an_integrator_keeps_the_state_of_a_derivative_in_place(method: str):
    if method != "rk4":
        pytest.importorskip("torchdiffeq")
    x = torch.randn(5, 4)
    before = x.clone()
    y = IntegratorStepper(lambda x: x.neg_(), 0.1, 2, method)(x)
    torch.testing.assert_close(y, IntegratorStepper(torch.neg, 0.1, 2, method)(x))
    assert torch.equal(x, before)


def test_networks_trained_one_by_one_leave_the_windows_alone():
    def networks():
        torch.manual_seed(0)
        return [nn.Sequential(nn.Tanh(), nn.Linear(2, 2)) for _ in range(2)]

    writing = networks()
    for network in writing:
        network[0] = Written()
    windows = torch.randn(2, 5, 4, 2)
    before = windows.clone()
    loss = WindowLoss(torch.zeros(2), torch.ones(2), torch.ones(2, 2), torch.ones(2, 3) / 3)
    torch.testing.assert_close(
        loss(OneByOne(writing), windows), loss(OneByOne(networks()), windows)
    )
    assert torch.equal(windows, before)


class Written(nn.Module):
    """tanh, in place."""

    def forward(self, x):
        return x.tanh_()


def squared(y, t):
    return y.sub_(t).square().mean()


def test_in_place_losses_get_the_targets_and_do_not_change_them():
    outputs = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)]
    target = torch.randn(1, 2, 8, 8)
    before = [t.clone() for t in (*outputs, target)]

    def spoiling(y, t):
        return t.sub_(y).square().mean()

    for loss in (squared, spoiling):
        torch.testing.assert_close(
            DeepSupervisionLoss(loss)(outputs, target),
            DeepSupervisionLoss(nn.MSELoss())(outputs, target),
        )
        torch.testing.assert_close(
            MultiScaleLoss(loss)(outputs[::-1], target), MultiScaleLoss()(outputs[::-1], target)
        )
    assert all(torch.equal(a, b) for a, b in zip((*outputs, target), before, strict=True))


def test_a_rollout_keeps_the_start_that_a_correction_writes_over():
    def halved(density, start):
        return density.add_(start.mul_(0.5)).mul_(0.5)

    density, fields = torch.rand(1, 1, 6), torch.zeros(1, 3, 1, 6)
    before = density.clone()
    y = rollout(lambda x: 0.5 * x[:, :1], density, fields, 3, halved)
    expected = rollout(
        lambda x: 0.5 * x[:, :1], density, fields, 3, lambda d, s: (d + 0.5 * s) * 0.5
    )
    torch.testing.assert_close(y, expected)
    assert torch.equal(density, before)


def test_a_backbone_leaves_the_image_alone():
    x = torch.randn(1, 2, 8, 8)
    before = x.clone()
    Backbone(IMAGE_WRITERS["relu"]())(x)
    assert torch.equal(x, before)


def test_metrics_get_the_output_that_a_loss_overwrote():
    pytest.importorskip("lightning")
    from torchmetrics import MeanSquaredError

    from neurenix_ms.training import RegressionTask

    task = RegressionTask(nn.Identity(), squared, {"mse": MeanSquaredError()})
    task.log = task.log_dict = lambda *args, **kwargs: None
    x, target = torch.full((4, 2), 3.0), torch.ones(4, 2)
    task.validation_step((x, target), 0)
    assert task.val_metrics["mse"].compute().item() == 4
    assert x.eq(3).all()


class Stacks(nn.Module):
    """A network that does not write to its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


@pytest.mark.parametrize("grad", [True, False])
def test_networks_that_write_to_nothing_cost_no_memory(grad: bool, monkeypatch):
    x = torch.randn(2, 2, 32, 32)
    network = Stacks()
    vectors, mlp = torch.randn(64, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    calls = [
        lambda: MultiScaleModel([1.0, 0.5], network, "mean")(x),
        lambda: MultiScaleInference(network, [1.0, 0.5], [0])(x),
        lambda: TimeStepper(network, 1)(x),
        lambda: HierarchicalTimeStepper([TimeStepper(mlp, 1), TimeStepper(mlp, 3)])(vectors, 7),
        lambda: Backbone(nn.Sequential(network))(x),
    ]

    def peaks():
        with torch.set_grad_enabled(grad):
            return [peak_tensor_bytes(call) for call in calls]

    protecting = peaks()
    monkeypatch.setattr("neurenix_ms._core.inplace.protected", lambda x: x)
    assert protecting == peaks()
