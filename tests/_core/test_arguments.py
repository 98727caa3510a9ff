"""Whatever an argument is, a public call works, or refuses it by its name, and soon."""

import inspect
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from patience import is_within
from torch import nn

import neurenix_ms as nms
from neurenix_ms import conservation, datasets, implicit, meter, msnet, timestepping, weights
from neurenix_ms.backbones import inflate
from neurenix_ms.compat import neurenix
from neurenix_ms.compat.ms_net import MS_Net, get_masks, rnd_array
from neurenix_ms.conservation import (
    MassConservationLoss,
    conserve_mass,
    mass_error,
    rollout,
    total_mass,
)
from neurenix_ms.layers import mlp
from neurenix_ms.msnet import MSNet, coarsen, random_volume, scale_masks
from neurenix_ms.multiscale import LaplacianPyramidLoss
from neurenix_ms.training import (
    DeepSupervisionLoss,
    DiceLoss,
    MultiScaleInference,
    MultiScaleLoss,
    MultiScaleStructuralSimilarity,
    MultiScaleTask,
    RegressionTask,
    SegmentationTask,
    SpectralLoss,
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Some of the values are names of files."""
    monkeypatch.chdir(tmp_path)


class Raising:
    """An object of a foreign library that raises whatever it is asked."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth value")


class Odd(str):
    pass


# of all kinds, valid for some arguments and not for others
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 5, 2**63, 10**30, -(10**400)),
    *(0.0, 0.5, 1.5, -0.5, float("nan"), float("inf"), float("-inf"), 1e-300, 1j),
    *("", "batch", "mean", "nonsense", "1", "0.5", b"batch", Odd("mean"), np.str_("batch")),
    *([], [1], [1, 2], [0], [-1], [0.5], [0.5, 1.0], ["a"], [None], [[1]], [[1], [2]], [2, 1, 3]),
    *((), (1,), (3, 3), (1, 2, 3), ("instance", {"affine": True}), {}, {"a": 1}, {1: 2}, {1, 2}),
    *(range(2), iter([1, 2]), (n for n in (1, 2)), slice(1), Ellipsis, NotImplemented, object()),
    *(np.int64(2), np.int8(-1), np.float64(0.5), np.float16(0.5), np.bool_(True), np.nan),
    *(
        np.array([1, 2]),
        np.array([0.5]),
        np.array(2),
        np.zeros((2, 2)),
        np.array(["a"]),
        np.array([]),
    ),
    *(
        torch.tensor(2),
        torch.tensor(0.5),
        torch.tensor([1, 2]),
        torch.tensor(True),
        torch.tensor(1j),
    ),
    *(torch.zeros(1, 1, 8, 8), torch.zeros(2, 3), torch.zeros(0), torch.tensor(2, device="meta")),
    *(
        nn.ReLU,
        nn.ReLU(),
        nn.Linear(1, 1),
        nn.BatchNorm2d,
        id,
        len,
        lambda: None,
        Raising,
        Raising(),
    ),
    *(
        torch.float32,
        torch.device("cpu"),
        OrderedDict(a=torch.zeros(1, 1, 4, 4)),
        Exception("x"),
        int,
    ),
]
CALLED = (
    "model",
    "call",
    "rhs",
    "network",
    "loss",
    "conserve",
)  # what these do is their own business
CONTENT = "state_dict", "state_dicts", "weights", "config"  # refused by the name of an entry
STATES = "x0", "history"  # refused by the network that gets them
WRITTEN = "root", "checkpoint"  # places on disk
SLOW = {
    timestepping.fit_adaptive,
    timestepping.fit_hierarchy,
    timestepping.fit_rollouts,
    timestepping.fit_sequences,
}


def decay(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x[:, :1]


def small_nif() -> nn.Module:
    return implicit.NIF(1, 1, shape_width=2, parameter_width=2)


def hierarchy() -> timestepping.HierarchicalTimeStepper:
    steppers = [timestepping.TimeStepper(mlp.MLP(2, 2, [2]), n) for n in (1, 2)]
    return timestepping.HierarchicalTimeStepper(steppers)


def stride_errors() -> timestepping.StrideErrors:
    return timestepping.StrideErrors(mlp.MLP(2, 4, [2]), [0.0, 0.0], [1.0, 1.0])


def adaptive() -> timestepping.AdaptiveTimeStepper:
    steppers = list(hierarchy().steppers)
    return timestepping.AdaptiveTimeStepper(steppers, stride_errors(), 0.1)


def multirate() -> timestepping.MultirateStepper:
    latents = timestepping.LinearLatents(2, [1])
    return timestepping.MultirateStepper(mlp.MLP(4, 2, [2]), latents, [2], hidden_size=2)


MAP = torch.rand(1, 1, 8, 8)
ROWS = torch.rand(2, 8, 2)
UNET_STATE = weights.export_unet(nms.UNet(1, 1, [2], align_corners=True))
HITS = {f"Linear_0.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}
MSNET_STATE = {
    "models.0.head.conv.weight": torch.zeros(4, 1, 3, 3, 3),
    "models.0.head.conv.bias": torch.zeros(4),
    "models.0.tail.0.weight": torch.zeros(1, 4, 1, 1, 1),
    "models.0.tail.0.bias": torch.zeros(1),
}
NIF_SIZES = {"first": (1, 4), "hidden0": (4, 4), "bottleneck": (4, 1), "last": (1, 13)}
NIF_WEIGHTS = {f"pnet.{name}.w": torch.zeros(size) for name, size in NIF_SIZES.items()}
NIF_WEIGHTS |= {f"pnet.{name}.b": torch.zeros(size[1]) for name, size in NIF_SIZES.items()}
NIF_CONFIG = {
    "variant": "NIF",
    "shape_net": {"input_dim": 1, "output_dim": 1, "units": 2, "nlayers": 1},
    "parameter_net": {},
}
MAKERS: dict[Callable[..., Any], dict[str, Any]] = {
    nms.UNet: {"in_channels": 1, "out_channels": 1, "features": [2, 3]},
    nms.UNetDecoder: {"encoder_channels": [2, 3], "out_channels": 1},
    nms.Level: {"encode": nn.Conv2d(1, 1, 1)},
    datasets.RandomScaledCrop: {"size": 4},
    nms.NestedUNet: {"in_channels": 1, "out_channels": 1, "features": [2, 3]},
    nms.NestedUNetDecoder: {"encoder_channels": [2, 3], "out_channels": 1},
    nms.HighResolutionNetwork: {"in_channels": 1, "features": [2, 3], "stem_channels": 2},
    nms.FiLM: {"condition_channels": 2, "channels": 3},
    nms.SinusoidalEmbedding: {"channels": 4},
    nms.PyramidNetwork: {"in_channels": 1, "out_channels": 1, "num_levels": 2, "base_channels": 2},
    nms.PyramidFusion: {"in_channels": [2, 3]},
    nms.UPerHead: {"in_channels": [2, 3], "out_channels": 2, "hidden_channels": 4},
    nms.DeepLabHead: {"in_channels": [2, 3], "out_channels": 2, "hidden_channels": 4},
    nms.BidirectionalFusion: {"in_channels": [2, 3], "out_channels": 2},
    nms.MultiScaleModel: {"scales": [1.0, 0.5], "base_model": nn.Conv2d(1, 1, 1)},
    nms.FeatureFusion: {"in_channels": [2, 3], "out_channels": 2},
    nms.ScaleFusion: {"scales": [1.0, 0.5], "in_channels": 2, "out_channels": 2},
    nms.AttentionFusion: {"in_channels": [2, 3], "out_channels": 2},
    nms.MultiScalePooling: {},
    nms.PyramidPooling: {"in_channels": 8, "out_channels": 2},
    nms.AtrousPyramidPooling: {"in_channels": 3, "out_channels": 2},
    nms.SpectralMixing: {"in_channels": 3, "out_channels": 2, "modes": 2},
    nms.SpatialPyramidPooling: {},
    nms.MultiScaleTransform: {},
    nms.Rescale: {},
    nms.PyramidDownsample: {},
    nms.WaveletTransform: {},
    nms.InverseWaveletTransform: {},
    nms.BlurPool: {},
    nms.PixelShuffle: {},
    nms.PixelUnshuffle: {},
    nms.GaussianPyramid: {},
    nms.LaplacianPyramid: {},
    nms.Backbone: {"network": nn.Conv2d(1, 2, 3, 2, 1)},
    MSNet: {"num_scales": 2, "num_layers": 2},
    MS_Net: {"num_scales": 2},
    mlp.MLP: {"in_features": 2, "out_features": 2, "hidden": [2]},
    implicit.NIF: {"parameter_dim": 1, "coordinate_dim": 1, "shape_width": 2, "parameter_width": 2},
    implicit.MultiScaleNIF: {"parameter_dim": 1, "coordinate_dim": 1, "shape_width": 2},
    implicit.LastLayerNIF: {"parameter_dim": 1, "coordinate_dim": 1, "shape_width": 2},
    implicit.Normalizer: {"model": small_nif()},
    timestepping.TimeStepper: {"network": mlp.MLP(2, 2, [2]), "step_size": 2},
    timestepping.IntegratorStepper: {"rhs": decay, "dt": 0.1, "step_size": 2},
    timestepping.HierarchicalTimeStepper: {"steppers": list(hierarchy().steppers)},
    timestepping.StandardizedNetwork: {
        "network": nn.Identity(),
        "mean": [0.0],
        "std": [1.0],
        "scale": [1.0],
    },
    timestepping.StrideErrors: {"network": nn.Identity(), "mean": [0.0], "std": [1.0]},
    timestepping.AdaptiveTimeStepper: {
        "steppers": list(hierarchy().steppers),
        "errors": stride_errors(),
        "tolerance": 0.1,
        "interpolation": 0.2,
    },
    timestepping.FourierLatents: {"channels": 1, "size": [6], "modes": [3, 2]},
    timestepping.LinearLatents: {"num_inputs": 3, "num_features": [2, 1]},
    timestepping.MultirateStepper: {
        "predictor": mlp.MLP(4, 2, [2]),
        "latents": timestepping.LinearLatents(2, [1]),
        "periods": [2],
        "hidden_size": 2,
    },
    timestepping.ClockworkRNN: {"num_features": 2, "hidden_size": 4, "num_groups": 2},
    timestepping.EchoStateNetwork: {"num_features": 2, "hidden_size": 4},
    timestepping.LSTMForecaster: {"num_features": 2, "hidden_size": 2},
    timestepping.SequenceModel: {"num_features": 2, "hidden_size": 2},
    MultiScaleLoss: {},
    DeepSupervisionLoss: {"loss": nn.MSELoss()},
    DiceLoss: {},
    SpectralLoss: {},
    MultiScaleStructuralSimilarity: {},
    LaplacianPyramidLoss: {},
    MassConservationLoss: {},
    MultiScaleInference: {"model": nn.Identity()},
    RegressionTask: {"model": nn.Linear(1, 1)},
    SegmentationTask: {"model": nn.Linear(1, 1)},
    MultiScaleTask: {"model": nn.Linear(1, 1), "loss": nn.MSELoss()},
    implicit.PruningSchedule: {"start": 0.1, "end": 0.5, "rounds": 2},
}
FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    inflate: {"module": nn.Conv2d(1, 2, 3)},
    coarsen: {"x": MAP, "num_scales": 2},
    scale_masks: {"x": MAP, "num_scales": 2},
    random_volume: {"size": 4, "num_scales": 2},
    rnd_array: {"size": 4, "scales": 2},
    get_masks: {"x": MAP, "scales": 2},
    neurenix.Tensor: {"shape": [2, 3]},
    total_mass: {"x": MAP},
    conserve_mass: {"pred": MAP, "reference": MAP},
    mass_error: {"pred": MAP, "true": MAP},
    rollout: {"model": decay, "density": MAP, "fields": torch.rand(1, 2, 8, 8), "steps": 2},
    implicit.gradient: {"model": small_nif(), "p": torch.rand(3, 1), "x": torch.rand(3, 1)},
    implicit.hessian: {"model": small_nif(), "p": torch.rand(3, 1), "x": torch.rand(3, 1)},
    implicit.laplacian: {"model": small_nif(), "p": torch.rand(3, 1), "x": torch.rand(3, 1)},
    implicit.time_derivative: {"model": small_nif(), "p": torch.rand(3, 1), "x": torch.rand(3, 1)},
    implicit.prune_nodes: {"model": small_nif(), "sparsity": 0.1, "parameters": torch.rand(3, 1)},
    implicit.sparsity: {"model": small_nif()},
    implicit.compact: {"model": small_nif()},
    implicit.densify: {
        "model": implicit.MultiScaleNIF(1, 1, shape_width=2, parameter_width=2),
        "num_nodes": 1,
        "parameters": torch.rand(3, 1),
    },
    timestepping.select_strides: {"hierarchy": hierarchy(), "validation": ROWS},
    timestepping.fit_hierarchy: {
        "trajectories": ROWS,
        "dt": 0.1,
        "step_sizes": [1, 2],
        "network": lambda: mlp.MLP(2, 2, [2]),
        "validation": ROWS,
        "num_iterations": 1,
        "stacked": False,
        "progress": False,
    },
    timestepping.fit_adaptive: {
        "hierarchy": hierarchy(),
        "trajectories": ROWS,
        "network": lambda: mlp.MLP(2, 4, [2]),
        "tolerance": 0.1,
        "num_windows": 4,
        "num_iterations": 1,
        "progress": False,
    },
    timestepping.fit_rollouts: {
        "model": multirate(),
        "trajectories": ROWS,
        "validation": ROWS,
        "horizon": 2,
        "history": 1,
        "num_iterations": 1,
        "progress": False,
    },
    timestepping.fit_sequences: {
        "model": timestepping.LSTMForecaster(2, 2),
        "sequences": ROWS,
        "validation": ROWS,
        "length": 2,
        "num_iterations": 1,
        "progress": False,
    },
    nms.list_models: {},
    datasets.effective_conductivity: {"potential": MAP, "pores": MAP > 0.5},
    datasets.smooth_trajectories: {"trajectories": ROWS},
    datasets.travelling_wave: {"num_points": 8},
    datasets.kuramoto_sivashinsky: {"nu": 0.1, "num_points": 8, "num_times": 2, "end_time": 0.1},
    datasets.turbulence2d: {"num_points": 8, "num_times": 2, "end_time": 0.1, "time_step": 0.1},
    weights.load_unet: {"state_dict": UNET_STATE},
    weights.export_unet: {"model": nms.UNet(1, 1, [2], align_corners=True)},
    weights.load_hits: {"state_dicts": {1: HITS}},
    weights.load_msnet: {"state_dict": MSNET_STATE},
    weights.load_nif: {"weights": NIF_WEIGHTS, "config": NIF_CONFIG},
    meter.parameter_table: {"model": nn.Linear(1, 1)},
    meter.format_parameter_table: {"model": nn.Linear(1, 1)},
    meter.peak_tensor_bytes: {"call": lambda: None},
    meter.count_flops: {"call": lambda: None},
}
CALLS_OF = MAKERS | FUNCTIONS
CALLS = [
    (function, options, name, value)
    for function, options in CALLS_OF.items()
    for name in inspect.signature(function).parameters
    for value in VALUES
    if not (function in FUNCTIONS and name in CALLED and callable(value)) and name not in WRITTEN
]


def outcome(
    function: Callable[..., Any], options: dict[str, Any], name: str, value: Any
) -> str | None:
    """What is wrong with the end of a call; None if nothing is."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**{**options, name: value})
    except (ValueError, TypeError) as error:
        of_content = name in CONTENT and isinstance(value, dict)
        of_content |= name in STATES and isinstance(value, torch.Tensor)
        if name not in str(error) and not of_content:
            return f"{type(error).__name__} without the name: {error}"
    except Exception as error:
        names_extra = isinstance(error, ImportError) and "pip install 'neurenix_ms[" in str(error)
        return None if names_extra else f"{type(error).__name__}: {error}"
    spent = time.process_time() - start
    if not is_within(spent, 2):
        return f"it took {spent:.1f} s"
    return None


def wrong(calls: list[Any]) -> list[str]:
    found = []
    for function, options, name, value in calls:
        if (words := outcome(function, options, name, value)) is not None:
            try:
                shown = repr(value)[:60]
            except RuntimeError:
                shown = type(value).__name__
            found.append(f"{function.__name__}({name}={shown}): {words.splitlines()[0][:200]}")
    return found


def test_every_public_callable_has_a_case():
    ours = {
        getattr(module, name)
        for module in (nms, msnet, implicit, timestepping, conservation, datasets, weights, meter)
        for name in getattr(module, "__all__", [])
    }
    told = {
        *(nms.save, nms.load, nms.enable_gradient_checkpointing),  # tests/test_files.py
        *(datasets.DriftDensity, datasets.PorousConduction, datasets.SampleCache),  # on disk
        *(datasets.ScannedConduction, datasets.SmoothedTrajectories),  # on disk; a result
        *(datasets.open_array, datasets.create_array, datasets.RandomCrops, datasets.Windows),
        *(
            implicit.PointCloud,
            implicit.PruningRound,
            implicit.prune_and_retrain,
            timestepping.Selection,
        ),
        weights.read_pickle,
        nms.TiledModel,  # tests/execution
        nms.LevelFeatures,  # of a flag, and made in every forward pass
        *(nms.create, nms.from_pretrained),  # tests/registry, tests/sharing
    }
    assert ours - set(CALLS_OF) - told == set()


@pytest.mark.parametrize(
    "function",
    [pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in CALLS_OF],
    ids=lambda function: function.__name__,
)
def test_every_value_of_every_argument_works_or_is_refused_by_its_name(function):
    assert wrong([call for call in CALLS if call[0] is function]) == []


class Steps:
    """What takes part in a forecast without being a module."""

    step_size = 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


METHODS: list[tuple[Callable[[], Any], str, dict[str, Any]]] = [
    (nms.MultiScaleModel, "add_scale", {"scale": 0.3}),
    (nms.MultiScaleModel, "remove_scale", {"scale": 0.5}),
    (
        lambda: MSNet(1, num_layers=1),
        "predict",
        {"x": torch.rand(1, 1, 4, 4, 4), "tile_size": None},
    ),
    (
        hierarchy,
        "forecast",
        {"x0": torch.rand(1, 2), "num_steps": 3, "times": None, "chunk_size": 2},
    ),
    (hierarchy, "only", {"step_sizes": [1]}),
    (adaptive, "forecast", {"x0": torch.rand(1, 2), "num_steps": 3, "times": None}),
    (lambda: hierarchy().steppers[0], "forecast", {"x0": torch.rand(1, 2), "num_steps": 2}),
    (
        multirate,
        "forecast",
        {"x0": torch.rand(1, 2), "num_steps": 2, "history": torch.rand(1, 3, 2)},
    ),
    (
        lambda: timestepping.LSTMForecaster(2, 2),
        "forecast",
        {"history": torch.rand(1, 3, 2), "num_steps": 2},
    ),
    (
        lambda: timestepping.EchoStateNetwork(2, 4),
        "fit",
        {"sequences": torch.rand(1, 9, 2), "washout": 2},
    ),
]


@pytest.mark.parametrize(("make", "method", "options"), METHODS, ids=range(len(METHODS)))
def test_an_argument_of_a_method_works_or_is_refused_by_its_name(make, method, options):
    found = []
    for name in options:
        for value in VALUES:

            def call(_name=name, **arguments):
                getattr(make(), method)(**arguments)

            if (words := outcome(call, options, name, value)) is not None:
                found.append(f"{method}({name}={type(value)}): {words[:200]}")
    assert found == []


def test_a_call_with_a_wrong_signature_is_a_type_error_of_python():
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'out_channels'"):
        nms.UNet(3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'widths'"):
        nms.UNet(3, 1, widths=[4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: nms.UNet(1, 1, kernel_size=(3, 3)),
            "kernel_size must be one value or a list of 5, one per level, got (3, 3)",
        ),
        (lambda: nms.UNet(1, 1, 64), "features must be a sequence of integers, got 64"),
        (
            lambda: nms.UNet(1, 1, norm=("instance", {"affine": True})),
            "norm must be one of ['batch', 'instance', 'group'], a callable or None, got ('instance',",
        ),
        (lambda: nms.UNet(1.0, 1), "in_channels must be an integer, got 1.0"),
        (
            lambda: DeepSupervisionLoss(nn.MSELoss(), 1),
            "weights must be a sequence of numbers or None",
        ),
        (lambda: nms.MultiScalePooling(2), "pool_sizes must be a sequence of integers, got 2"),
        (
            lambda: nms.PyramidFusion(1.5),
            "in_channels must be an integer, a sequence of integers or a",
        ),
        (
            lambda: nms.UNetDecoder(1.5, 1),
            "encoder_channels must be a sequence of integers or a Back",
        ),
        (lambda: nms.UNet(1, 1, [4], act=["relu"]), "act must be one of ['relu', "),
    ],
)
def test_frequent_mistakes_are_said(call, words):
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        call()


def test_arrays_and_tensors_of_numbers_become_plain():
    model = nms.UNet(np.int64(3), torch.tensor(2), np.array([4, 8]), dropout=np.float32(0.5))
    assert model.config["features"] == [4, 8]
    kinds = {name: type(value) for name, value in model.config.items()}
    assert kinds["in_channels"] is kinds["out_channels"] is int
    assert kinds["dropout"] is float
    assert [type(width) for width in model.features] == [int, int]
