"""Copies, pickles and averaged models have the modes, outputs and buffers of their originals."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import implicit_cases
import pytest
import torch
from cases import CASES, as_list, build
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet
from neurenix_ms.backbones import Backbone
from neurenix_ms.execution import TiledModel
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import (
    ClockworkRNN,
    EchoStateNetwork,
    FourierLatents,
    HierarchicalTimeStepper,
    LinearLatents,
    LSTMForecaster,
    MultirateStepper,
    TimeStepper,
)
from neurenix_ms.training import (
    DeepSupervisionLoss,
    DiceLoss,
    MassConservationLoss,
    MultiScaleInference,
    MultiScaleLoss,
)

torchvision = pytest.importorskip("torchvision")
extraction = pytest.importorskip("torchvision.models.feature_extraction")

WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "averaged": lambda model: AveragedModel(model).module,
    "averaged-ema": lambda model: averaged_once(model),
}
MODES: dict[str, Callable[[nn.Module], None]] = {
    "train": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "mixed": lambda model: alternating(model),
}


def averaged_once(model: nn.Module) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    return average.module


def alternating(model: nn.Module) -> None:
    """Statistics of every second module are frozen."""
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0


def small_resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


def small_swin() -> nn.Module:
    """Its graphs call functions of torchvision by name."""
    return torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4])


def dropping() -> nn.Module:
    """Its graphs of training and evaluation differ."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), Dropped(), nn.Conv2d(4, 4, 3, 2, 1)
    )


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def steppers() -> list[TimeStepper]:
    return [TimeStepper(MLP(2, 2, [4]), stride) for stride in (1, 3)]


IMAGE = (2, 3, 40, 36)
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple]] = {
    "Backbone-levels": (lambda: Backbone(small_resnet(), levels=[0, 1, 2]), (IMAGE,)),
    "Backbone-dropout": (lambda: Backbone(dropping()), (IMAGE,)),
    "Backbone-extracted": (
        lambda: Backbone(
            extraction.create_feature_extractor(small_resnet(), {"layer1": "a", "layer2": "b"})
        ),
        (IMAGE,),
    ),
    "Backbone-normalized": (
        lambda: Backbone(dropping(), normalize="imagenet"),
        (IMAGE,),
    ),
    "Backbone-functions": (lambda: Backbone(small_swin()), (IMAGE,)),
    "Backbone-nested": (lambda: Backbone(Backbone(dropping())), (IMAGE,)),
    "Sequential-of-Backbone": (lambda: nn.Sequential(Backbone(dropping())), (IMAGE,)),
    "MultiScaleInference": (
        lambda: MultiScaleInference(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), [1, 0.5]),
        (IMAGE,),
    ),
    "TiledModel": (lambda: TiledModel(nn.Conv2d(3, 4, 3, padding=1), 16), (IMAGE,)),
    "TimeStepper": (lambda: steppers()[0], ((5, 2),)),
    "HierarchicalTimeStepper": (lambda: HierarchicalTimeStepper(steppers()), ((5, 2), 7)),
    "FourierLatents": (lambda: FourierLatents(2, [6], [3, 2]), ((5, 2, 6),)),
    "LinearLatents": (lambda: LinearLatents(3, [2, 1]), ((5, 3),)),
    "MultirateStepper": (
        lambda: MultirateStepper(MLP(9, 3, [4]), LinearLatents(3, [3, 2]), [1, 2], hidden_size=4),
        ((2, 5, 3),),
    ),
    "LSTMForecaster": (lambda: LSTMForecaster(3, 4), ((2, 5, 3),)),
    "ClockworkRNN": (lambda: ClockworkRNN(3, 8), ((2, 5, 3),)),
    "EchoStateNetwork": (lambda: EchoStateNetwork(3, 8), ((2, 5, 3),)),
    "DiceLoss": (lambda: DiceLoss(), ((2, 3, 8), [2, 3, 8])),
    "DeepSupervisionLoss": (lambda: DeepSupervisionLoss(nn.MSELoss()), ([(2, 3, 8)], (2, 3, 8))),
    "MultiScaleLoss": (lambda: MultiScaleLoss(), ([(2, 3, 8)], (2, 3, 8))),
    "MassConservationLoss": (lambda: MassConservationLoss(), ((2, 3, 8), (2, 3, 8))),
}


def task(name: str) -> nn.Module:
    pytest.importorskip("lightning")
    from neurenix_ms import training

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    arguments = [nn.MSELoss()] if name == "MultiScaleTask" else []
    return getattr(training, name)(model, *arguments)


for one in ("RegressionTask", "SegmentationTask", "MultiScaleTask"):
    OTHERS[one] = (partial(task, one), (IMAGE,))


def given(what):
    """Tensors of the shapes: normal for a tuple, from 0 to 1 for a list of numbers, lists for lists."""
    if isinstance(what, tuple):
        return torch.randn(what)
    if isinstance(what, list) and isinstance(what[0], int):
        return torch.rand(what)
    return [given(one) for one in what] if isinstance(what, list) else what


def built(name: str) -> tuple[nn.Module, list]:
    """A module and arguments for it."""
    torch.manual_seed(0)
    for case in CASES:
        if case.name == name:
            return build(case), [case.inputs(case.size(13))]
    if name in OTHERS:
        make, arguments = OTHERS[name]
        return make(), [given(argument) for argument in arguments]
    return implicit_cases.build(name), [torch.randn(6, 2), torch.randn(6, 2)]


NAMES = [case.name for case in CASES if case.spatial_dims == 2]
NAMES += [*OTHERS, *implicit_cases.KINDS]


@pytest.mark.parametrize(  # the mixed mode has modules of both
    "mode", [pytest.param(m, marks=[] if m == "mixed" else [pytest.mark.slow]) for m in MODES]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_mode_and_the_output_of_the_original(name: str, mode: str):
    model, arguments = built(name)
    MODES[mode](model)
    flags = [(path, module.training) for path, module in model.named_modules()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    twins = {way: make(model) for way, make in WAYS.items()}
    for way, one in {"original": model, **twins}.items():
        assert [(path, module.training) for path, module in one.named_modules()] == flags, way
        found = dict(one.named_buffers())
        assert all(torch.equal(found[key], value) for key, value in buffers.items()), way
    expected = as_list(seeded(model, arguments))
    for way, twin in twins.items():
        for y, wanted in zip(as_list(seeded(twin, arguments)), expected, strict=True):
            torch.testing.assert_close(y, wanted, rtol=0, atol=0, msg=way)
        after = dict(twin.named_buffers())
        for key, value in model.named_buffers():
            assert torch.equal(after[key], value), (way, key)
            if mode == "eval":
                assert torch.equal(value, buffers[key]), key


def seeded(model: nn.Module, arguments: list):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(*arguments)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_backbone_can_still_be_switched(way: str):
    model, (x,) = built("Backbone-dropout")
    twin = WAYS[way](model.eval())
    twin.train()
    with torch.no_grad():
        assert (twin(x)[0] == 0).float().mean() > 0.3  # dropout has come back
        twin.eval()
        assert (twin(x)[0] == 0).float().mean() < 0.1


def test_a_copy_shares_nothing_with_its_original():
    model, (x,) = built("Backbone-levels")
    twin = copy.deepcopy(model.eval())
    expected = model(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
    assert all(not y.any() for y in twin(x))


LATER = ("condition_channels", "condition", "conditions", "foreign", "film", "preset")
EARLIER: dict[str, Callable[[], nn.Module]] = {
    **{
        block: partial(UNet, 2, 1, [4, 6], block=block, norm="group")
        for block in ("double", "residual", "preactivation", "convnext", "inverted")
    },
    "given": partial(UNet, 2, 1, [4, 6], block=partial(nn.Conv2d, kernel_size=1)),
    "pyramid": partial(PyramidNetwork, 2, 1, 3, 4),
    "scales": lambda: MultiScaleModel([1.0, 0.5], nn.Conv2d(2, 1, 1), "mean"),
}


@pytest.mark.parametrize("build", EARLIER.values(), ids=EARLIER)
def test_models_pickled_before_there_were_conditions_run(build: Callable[[], nn.Module]):
    model = build().eval()
    x = torch.randn(1, 2, 16, 12)
    expected = model(x)
    for part in model.modules():
        for name in LATER:
            part.__dict__.pop(name, None)
    earlier = pickle.loads(pickle.dumps(model))
    assert torch.equal(earlier(x), expected)
    assert "condition" not in repr(earlier)
