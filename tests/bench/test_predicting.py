"""Memory predicted from shapes is that which is measured."""

from typing import Any

import pytest
import torch
from cases import CASES, Case, build
from torch import nn

from neurenix_ms import UNet, enable_gradient_checkpointing
from neurenix_ms.backbones import Backbone
from neurenix_ms.bench import predict_memory
from neurenix_ms.bench.comparing import loss_of
from neurenix_ms.execution import TiledModel
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.registry import create
from neurenix_ms.transport import Advection

QUICK = {
    "UNet-2d",
    "MultiScaleModel-2d",
    "MSNet-2d",
    "FeatureFusion-2d",
    "MSNet-3d",
}
SMALL = 64  # bytes of constants that `torch.tensor` makes, which only a prediction sees
EVERY = [
    case if case.name in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES
]


def measured(model: nn.Module, x: Any, train: bool, checkpointing: bool = False) -> int:
    def forward() -> None:
        with torch.no_grad():
            model(x)

    def step() -> None:
        with enable_gradient_checkpointing(checkpointing):
            loss = loss_of(model(x))
        loss.backward()
        model.zero_grad()

    return peak_tensor_bytes(step if train else forward)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_the_prediction_is_what_is_measured(case: Case):
    model, x = build(case).eval(), case.inputs(case.size(21))
    shape = [tuple(y.shape) for y in x] if isinstance(x, list) else tuple(x.shape)
    found = predict_memory(model, shape)
    assert found.peak == pytest.approx(measured(model, x, train=False), rel=0.02, abs=SMALL)
    assert found.inputs == sum(y.nbytes for y in (x if isinstance(x, list) else [x]))
    assert found.parameters == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert found.total == found.peak + found.inputs + found.parameters
    if list(model.parameters()):
        model.train()
        for on in (False, True):
            peak = predict_memory(model, shape, train=True, checkpointing=on).peak
            assert peak == pytest.approx(measured(model, x, True, on), rel=0.02, abs=SMALL)
        assert model.training
        assert all(p.grad is None for p in model.parameters())


def test_other_networks_and_dtypes_are_predicted():
    import torchvision

    resnet = torchvision.models.resnet18().eval()
    for model in (resnet, Backbone(resnet).eval()):
        x = torch.randn(1, 3, 32, 32)
        assert predict_memory(model, x.shape).peak == pytest.approx(
            measured(model, x, False), rel=0.02
        )
    double = nn.Conv2d(3, 4, 3).double()
    assert predict_memory(double, (1, 3, 8, 8)).inputs == 3 * 64 * 8
    assert predict_memory(nn.ReLU(), (4,), dtype="bfloat16").peak == 8


def test_further_arguments_are_predicted():
    model = UNet(1, 2, [4, 8], norm="group", condition_channels=3, remember=False)
    x, z = torch.randn(2, 1, 40, 48), torch.randn(2, 3)
    for train in (False, True):
        found = predict_memory(model.train(train), x.shape, args=[z.shape], train=train)
        call = Called(model, z)
        assert found.peak == pytest.approx(measured(call, x, train), rel=0.02, abs=SMALL)
    assert found.inputs == x.nbytes + z.nbytes
    step, density = Advection(2, scheme="flux", substeps=4), torch.rand(1, 1, 32, 24)
    call = Called(step, 0.1 * torch.rand(1, 2, 32, 24))
    peak = predict_memory(step, density.shape, args=[(1, 2, 32, 24)]).peak
    assert peak == pytest.approx(measured(call, density, False), rel=0.02, abs=SMALL)


DYNAMICS: list[Any] = [
    ("nif", [(200, 1), (200, 1)], {}),
    ("multiscale_nif", [(90, 1), (90, 2)], {}),
    ("last_layer_nif", [(90, 1), (90, 2)], {}),
    ("normalized_nif", [(90, 1), (90, 1)], {}),
    pytest.param("nif", [(3000, 1), (3000, 1)], {"chunk_size": 500}, marks=pytest.mark.slow),
    ("time_stepper", [(64, 2)], {}),
    pytest.param("hits", [(16, 2)], {"num_steps": 1100}, marks=pytest.mark.slow),
    ("stride_errors", [(64, 2)], {}),
    ("standardized_network", [(64, 2)], {}),
    pytest.param("msr_hine", [(4, 20, 3)], {}, marks=pytest.mark.slow),
    ("clockwork_rnn", [(4, 20, 2)], {}),
    ("echo_state_network", [(4, 20, 2)], {}),
]


@pytest.mark.parametrize(("name", "shapes", "kwargs"), DYNAMICS)
def test_fields_and_forecasts_are_predicted(
    name: str, shapes: list[tuple[int, ...]], kwargs: dict[str, Any]
):
    model, (first, *others) = create(name), shapes
    call = Called(model, *(torch.rand(shape) for shape in others), **kwargs)
    for train in (False, True):
        found = predict_memory(model.train(train), first, args=others, kwargs=kwargs, train=train)
        peak = measured(call, torch.rand(first), train)
        assert found.peak == pytest.approx(peak, rel=0.02, abs=SMALL)


@pytest.mark.parametrize("shape", [(4, 20, 2), (1, 3, 2), (8, 4000, 2)])
def test_a_recurrent_network_is_predicted_with_the_workspace_of_its_kernels(shape: tuple[int, ...]):
    model, x = create("lstm_forecaster"), torch.rand(shape)
    for train in (False, True):
        peak = measured(model, x, train)
        assert predict_memory(model, shape, train=train).peak == pytest.approx(
            peak, rel=0.02, abs=SMALL
        )


@pytest.mark.slow
def test_recurrent_layers_of_torch_are_predicted():
    for settings in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        for shape in ((20, 4, 3), (3000, 16, 3), (600, 40, 3)):
            model, x = First(nn.LSTM(3, 24, **settings)), torch.rand(shape)
            found = predict_memory(model, shape, train=True).peak
            assert found == pytest.approx(measured(model, x, True), rel=0.02, abs=SMALL)


class First(nn.Module):
    """A module that returns the first result of another one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)[0]


def test_strides_that_follow_the_state_cannot_be_predicted():
    model = create("adaptive_time_stepper")
    with pytest.raises(ValueError, match=r"model must run on tensors .* without their values"):
        predict_memory(model, (4, 2), kwargs={"num_steps": 10})


@pytest.mark.slow
def test_further_arguments_of_tiles_are_predicted():
    z = torch.randn(2, 3)
    model = UNet(1, 2, [4], norm=None, condition_channels=3, spatial_dims=1, remember=False)
    tiled, x = TiledModel(model.eval(), 64, spatial_dims=1), torch.randn(2, 1, 500)
    tiled(x, args=(z,))
    peak = peak_tensor_bytes(lambda: tiled(x, args=(z,)))
    tiles = predict_memory(tiled, x.shape, args=[z.shape]).peak
    assert tiles == pytest.approx(peak, rel=0.02, abs=SMALL)


class Called(nn.Module):
    """A module that is always called with the same further arguments."""

    def __init__(self, module: nn.Module, *others: torch.Tensor, **kwargs: Any) -> None:
        super().__init__()
        self.module, self.others, self.kwargs = module, others, kwargs

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(x, *self.others, **self.kwargs)


def test_a_shape_that_the_network_refuses_is_refused_in_its_words():
    with pytest.raises(
        ValueError,
        match=r"model must run on tensors of this shape without .*, got .*Error: .*channels",
    ):
        predict_memory(UNet(3, 1, [4]), (1, 2, 8, 8))


class DependsOnValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "shape", "options", "words"),
    [
        (
            DependsOnValues(),
            (3,),
            {},
            "model must run on tensors of this shape without their values",
        ),
        (nn.ReLU(), (3, -1), {}, r"shape\[1\] must be at least 1, got -1"),
        (nn.ReLU(), (3,), {"args": [(0,)]}, r"args\[0\]\[0\] must be at least 1, got 0"),
        (nn.ReLU(), (3,), {"args": 3}, "args must be .* shapes, got 3"),
        (nn.ReLU(), 3, {}, "shape must be .* sizes, got 3"),
        (nn.ReLU(), (3,), {"kwargs": 3}, "kwargs must be arguments by name, got 3"),
        (
            nn.ReLU(),
            (3,),
            {"kwargs": {"x": torch.ones(2)}},
            r"kwargs\['x'\] must not be a tensor, got .*; use args",
        ),
        (
            nn.Conv2d(1, 1, 3, padding=1),
            (1, 1, 8, 8),
            {"tile_size": 4, "kwargs": {"a": 3}},
            "tiles must be of one input, without gradients and without kwargs, got",
        ),
        (nn.ReLU(), (), {}, "shape must have at least 1 entry"),
        (nn.ReLU(), (3,), {"checkpointing": True}, "checkpointing must come with train=True"),
        (
            nn.Conv2d(1, 1, 3, padding=1),
            (1, 1, 8, 8),
            {"tile_size": 4, "train": True},
            "tiles must be of one input, without gradients and without kwargs, got",
        ),
        (nn.ReLU(), (3,), {"dtype": "float31"}, "dtype must be a dtype of torch, got 'float31'"),
    ],
)
def test_a_wrong_argument_is_named(model: nn.Module, shape, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        predict_memory(model, shape, **options)


@pytest.mark.parametrize("schedule", ["passes", "in_step"])
def test_tiles_of_a_model_in_training_mode_are_predicted(schedule: str):
    model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3)).train()
    tiled, x = TiledModel(model, 64, spatial_dims=1, schedule=schedule), torch.randn(1, 1, 500)
    tiled(x)
    peak = peak_tensor_bytes(lambda: tiled(x))
    assert predict_memory(tiled, x.shape).peak == pytest.approx(peak, rel=0.02, abs=SMALL)
    assert model.training


@pytest.mark.parametrize("norm", [None, pytest.param("instance", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_tiles_are_predicted(norm: str | None):
    model = UNet(1, 2, [4, 8], norm=norm, remember=False, spatial_dims=1).eval()
    tiled, x = TiledModel(model, 64, spatial_dims=1), torch.randn(1, 1, 500)
    tiled(x)
    peak = peak_tensor_bytes(lambda: tiled(x))
    assert predict_memory(model, x.shape, tile_size=64).peak == pytest.approx(
        peak, rel=0.02, abs=SMALL
    )
    assert predict_memory(tiled, x.shape).peak == pytest.approx(peak, rel=0.02, abs=SMALL)
    passes = TiledModel(model, 64, spatial_dims=1, schedule="passes")  # in step, all tiles wait
    assert predict_memory(passes, x.shape).peak < predict_memory(model, x.shape).peak
    whole = predict_memory(model, (1, 1, 40), tile_size=64).peak
    assert whole == pytest.approx(
        measured(model, torch.randn(1, 1, 40), False), rel=0.02, abs=SMALL
    )


def test_what_does_not_fit_is_predicted_all_the_same():
    model = UNet(1, 1, [4, 8], spatial_dims=3)
    assert predict_memory(model, (1, 1, 2048, 2048, 2048), train=True).peak > 2**40
