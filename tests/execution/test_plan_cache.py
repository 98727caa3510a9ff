"""A plan holds for the model that it was made for, and for as long as that stays as it is."""

import copy
import gc
import pickle
import subprocess
import sys
import time
import types
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from patience import is_within
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from neurenix_ms import MultiScaleModel, UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients, footprint
from neurenix_ms.execution.plan import cache as plans
from neurenix_ms.execution.plan import choice
from neurenix_ms.execution.plan import footprint as footprints
from neurenix_ms.execution.plan.fingerprint import fingerprint_of
from neurenix_ms.meter import count_flops
from neurenix_ms.msnet import MSNet


@dataclass
class Settings:
    dilation: int = 1


class Net(nn.Module):
    """A convolution whose settings are read from many kinds of places."""

    factor = 1  # of the class
    table = {"dilation": 1}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, bias=False)
        self.extra = nn.Identity()
        self.dilation = 1
        self.pair = [1, {"dilation": 1}]
        self.settings = Settings()
        self.space = types.SimpleNamespace(dilation=1)
        self.array = np.array([1])
        self.holder = Holder()
        self.listed = [nn.Identity()]
        self.act = torch.relu
        self.register_buffer("counter", torch.zeros(1))
        nn.init.uniform_(self.conv.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.dilation, *self.pair[:1], self.pair[1]["dilation"], self.settings.dilation]
        steps += [self.space.dilation, int(self.array[0])]
        steps += [self.holder.dilation, self.factor, self.table["dilation"]]
        dilation = 1 + sum(n - 1 for n in steps)
        x = self.listed[0](self.extra(x))
        edge = dilation
        y = F.conv1d(x, self.conv.weight, None, 1, edge, dilation)
        return self.act(self.conv(F.pad(y, (1, 1)))) if self.training else self.helped(y)

    def helped(self, y: Tensor) -> Tensor:
        return y


class Holder:
    """Neither a dataclass nor a container."""

    def __init__(self) -> None:
        self.dilation = 1


class Wide(nn.Module):
    """Looks five cells to either side."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x, 11, 1, 5)


def widened(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return F.avg_pool1d(output, 11, 1, 5)


def widened_first(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (F.avg_pool1d(args[0], 11, 1, 5),)


class Taps(nn.Module):
    """A kernel that is longer than the one it is made from."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.pad(weight, (2, 2), value=0.5)


def set_in_place(values, value: int) -> None:
    values[0] = value


CHANGES = {
    "attribute": lambda m: setattr(m, "dilation", 4),
    "list": lambda m: m.pair.__setitem__(0, 4),
    "dict in a list": lambda m: m.pair[1].update(dilation=4),
    "dataclass": lambda m: setattr(m.settings, "dilation", 4),
    "namespace": lambda m: setattr(m.space, "dilation", 4),
    "numpy array": lambda m: set_in_place(m.array, 4),
    "object": lambda m: setattr(m.holder, "dilation", 4),
    "forward of the instance": lambda m: setattr(m, "forward", Wide().forward),
    "method of the instance": lambda m: setattr(m, "helped", lambda y: F.avg_pool1d(y, 11, 1, 5)),
    "submodule": lambda m: setattr(m, "extra", Wide()),
    "module in a list": lambda m: m.listed.__setitem__(0, Wide()),
    "hook": lambda m: m.extra.register_forward_hook(widened),
    "pre-hook": lambda m: m.extra.register_forward_pre_hook(widened_first),
    "parametrization": lambda m: parametrize.register_parametrization(
        m.conv, "weight", Taps(), unsafe=True
    ),
    "parameter": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(1, 1, 7))),
}


def halo(model: nn.Module) -> tuple[int, int]:
    return footprint(model, 1, 1).halo[0]


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_forward_makes_a_new_plan(name):
    model = Net().eval()
    x = torch.randn(1, 1, 60)
    tiled, before = TiledModel(model, 16, spatial_dims=1), halo(model)
    tiled(x)
    CHANGES[name](model)
    wanted = model(x)
    assert torch.allclose(tiled(x), wanted, atol=1e-5)
    assert torch.allclose(TiledModel(model, 16, spatial_dims=1)(x), wanted, atol=1e-5)
    assert halo(model) > before


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("factor", 4), ("table", {"dilation": 4}), ("forward", Wide.forward), ("helped", None)],
)
def test_a_changed_class_makes_a_new_plan(attribute, value, monkeypatch):
    model = Net().eval()
    before = halo(model)
    if attribute == "helped":
        value = lambda self, y: F.avg_pool1d(y, 11, 1, 5)  # noqa: E731
    monkeypatch.setattr(Net, attribute, value)
    assert halo(model) > before
    monkeypatch.undo()
    assert halo(model) == before
    monkeypatch.setitem(Net.table, "dilation", 4)
    assert halo(model) > before


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_a_global_hook_makes_a_new_plan(kind):
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    before = halo(model)
    register = getattr(nn.modules.module, f"register_module_{kind}")
    hook = widened if kind == "forward_hook" else widened_first
    handle = register(hook)
    try:
        assert halo(model) > before
    finally:
        handle.remove()
    assert halo(model) == before


def test_a_scale_that_is_added_makes_a_new_plan():
    model = MultiScaleModel([1.0], nn.Conv2d(1, 1, 3, padding=1), "mean").eval()
    x = torch.randn(1, 1, 64, 64)
    tiled = TiledModel(model, 32)
    tiled(x)
    model.add_scale(0.25)
    wanted = model(x)
    for one in (tiled, TiledModel(model, 32)):
        assert torch.allclose(one(x), wanted, atol=1e-5)
    model.remove_scale(1.0)
    assert torch.allclose(tiled(x), model(x), atol=1e-5)


def test_settings_of_a_layer_that_are_set_later_make_a_new_plan():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    x, tiled = torch.randn(1, 1, 60, 60), TiledModel(model, 16)
    tiled(x)
    for name, value in (("dilation", (4, 4)), ("padding", (8, 8)), ("stride", (2, 2))):
        setattr(model[1], name, value)
        assert torch.allclose(tiled(x), model(x), atol=1e-5)


def test_modes_of_single_modules_make_a_new_plan():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)).eval()
    assert footprint(model, 1, 1).global_layers == ()
    model[1].train()
    assert footprint(model, 1, 1).global_layers == ("1",)


def test_gradients_follow_a_changed_model():
    model = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)).double()
    x, y = torch.randn(2, 1, 1, 60, dtype=torch.float64)
    accumulate_gradients(model, x, y, F.mse_loss, 16)
    model[1].dilation, model[1].padding = (5,), (5,)
    model.zero_grad()
    accumulate_gradients(model, x, y, F.mse_loss, 16)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.mse_loss(model(x), y).backward()
    for p, grad in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, grad)


@pytest.fixture
def made(monkeypatch):
    """How many plans were made."""
    module = sys.modules["neurenix_ms.execution.plan.footprint"]
    count: list[int] = []
    measured = module._measured_plan
    monkeypatch.setattr(module, "_measured_plan", lambda *a: (count.append(1), measured(*a))[1])
    return count


class Writes(nn.Module):
    """Keeps a count of its calls and its last result, as many modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.calls = 0
        self.last: Tensor | None = None
        self.size = [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.conv(x)
        self.size = list(x.shape[2:])
        return self.last


@pytest.mark.parametrize("make", [Writes, lambda: UNet(1, 1, features=[4], norm=None)])
def test_what_a_forward_writes_itself_makes_no_new_plan(make, made):
    model = make().eval()
    x = torch.randn(1, 1, 40, 40)
    for _ in range(3):
        TiledModel(model, 16, whole=())(x)
        model(x)
    assert len(made) == 1


def test_new_values_of_weights_make_no_new_plan(made):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    other = copy.deepcopy(model)
    x, tiled = torch.randn(1, 1, 40, 40), TiledModel(model, 16)
    tiled(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
        model[1].running_mean.add_(1)
    model.load_state_dict(other.state_dict(), assign=True)
    tiled(x)
    assert len(made) == 1
    model.double()
    tiled(x.double())
    assert len(made) == 2


def test_stages_are_asked_once(made):
    model = MSNet(num_scales=3, num_filters=1, spatial_dims=2).eval()
    x = torch.rand(1, 1, 64, 64)
    first = model.predict(x, tile_size=16)
    count = len(made)
    assert count <= 2  # the coarsest is one tile
    assert torch.equal(model.predict(x, tile_size=16), first)
    assert len(made) == count


def test_modes_that_alternate_keep_their_plans(made):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for _ in range(3):
        for mode in (True, False):
            TiledModel(model.train(mode), 16)(torch.randn(2, 1, 40, 40))
    assert len(made) == 2


def test_nothing_is_written_into_the_model():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    before = pickle.dumps(model)
    names = [set(m.__dict__) for m in model.modules()]
    TiledModel(model, 16)(torch.randn(1, 1, 40, 40))
    assert [set(m.__dict__) for m in model.modules()] == names
    assert b"neurenix" not in pickle.dumps(model)
    assert len(pickle.dumps(model)) == len(before)


def test_a_model_of_torch_alone_is_unpickled_without_this_library(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    TiledModel(model, 16)(torch.randn(1, 1, 40, 40))
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    code = (
        "import sys, pickle, pathlib; sys.modules['neurenix_ms'] = None; "
        f"pickle.loads(pathlib.Path({str(path)!r}).read_bytes())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_copies_have_plans_of_their_own():
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    before = halo(model)
    other, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    other[0].dilation = (4,)
    assert halo(other) == (0, 8)
    assert halo(model) == halo(loaded) == before


def test_plans_are_bounded_and_go_with_their_model(monkeypatch):
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    for dilation in range(1, 2 * plans.MOST_STATES):
        model[0].dilation = (dilation,)
        halo(model)
    entry = plans._entries[model]
    assert len(entry.states) == plans.MOST_STATES
    monkeypatch.setattr(plans, "MOST_FINDINGS", 3)
    for n in range(40, 50):
        TiledModel(model, 16, spatial_dims=1)(torch.zeros(1, 1, n))
    assert all(len(state.findings) <= 3 for state in entry.states)
    gone, held = weakref.ref(model), len(plans._entries)
    del model, entry
    gc.collect()
    assert gone() is None
    assert len(plans._entries) < held


def test_a_model_that_refers_to_itself_is_freed():
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    model[0].parent = [model]
    model[0].forward_of_parent = model.forward
    model.apply(lambda m: m.register_forward_hook(lambda *_: None))
    halo(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Equal(nn.Conv1d):
    """Equality and a hash of its own."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


def test_models_that_are_equal_are_told_apart():
    one, other = Equal(1, 1, 3), Equal(1, 1, 7)
    assert halo(one) == (0, 2)
    assert halo(other) == (0, 6)


def test_identities_of_objects_that_are_gone_are_not_mistaken():
    model = nn.Sequential(nn.Identity(), nn.Conv1d(1, 1, 3))
    for k in range(1, 6):
        model[0] = nn.Conv1d(1, 1, 2 * k + 1, bias=False)  # may get the address of the one before
        assert halo(model) == (0, 2 * k + 2)
        gc.collect()


def test_values_of_small_integer_tensors_are_part_of_it():
    model = nn.Identity()
    model.sizes, model.weights = torch.tensor([1, 2]), torch.ones(2)
    before = fingerprint_of(model)
    model.weights += 1
    assert before.holds_for(fingerprint_of(model))
    model.sizes += 1
    assert not before.holds_for(fingerprint_of(model))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.script(nn.Conv1d(1, 1, 3)),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Conv1d(1, 1, 3))),
        lambda: parametrizations.weight_norm(nn.Conv1d(1, 1, 3)),
        lambda: torch.nn.utils.spectral_norm(nn.Conv1d(1, 1, 3)),
        lambda: nn.Sequential(nn.LazyConv1d(1, 3)),
    ],
    ids=["scripted", "traced", "parametrized", "spectral", "lazy"],
)
def test_modules_of_every_kind_have_a_fingerprint(make):
    model = make().eval()
    assert fingerprint_of(model).holds_for(fingerprint_of(model))


def test_a_fingerprint_takes_little_time():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(200)))
    fingerprint_of(model)
    times = []
    for _ in range(20):
        start = time.process_time()
        fingerprint_of(model)
        times.append(time.process_time() - start)
    assert is_within(min(times), 0.01)


def test_a_counter_of_operations_neither_counts_a_plan_nor_makes_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
):
    torch.manual_seed(0)
    model = UNet(1, 1, [4, 8], norm="instance", remember=False).eval()
    x = torch.randn(1, 1, 64, 64)
    first = count_flops(lambda: TiledModel(model, 32)(x))  # makes the plan
    assert first < 10 * count_flops(lambda: model(x))
    for module in (footprints, choice):
        monkeypatch.setattr(module, "measure_lengths", None)  # would raise
    assert count_flops(lambda: TiledModel(model, 32)(x)) == first
