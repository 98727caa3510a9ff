"""Old names of classes, arguments, attributes and modules work, with a warning."""

import importlib
import pickle
import pkgutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import neurenix_ms as nms
from neurenix_ms import implicit, timestepping, training
from neurenix_ms._core.moved import MOVED


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (training, "MultiscaleLoss", "MultiScaleLoss"),
        (training, "MultiscaleTask", "MultiScaleTask"),
        (implicit, "Normaliser", "Normalizer"),
        (timestepping, "StandardisedNetwork", "StandardizedNetwork"),
    ],
)
def test_an_old_class_name_warns_and_is_the_new_class(module, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        assert getattr(module, old) is getattr(module, new)


@pytest.mark.parametrize(
    ("make", "old", "new", "value"),
    [
        (lambda **k: nms.UNetDecoder([4, 8], **k), "output_channels", "out_channels", 2),
        (lambda **k: nms.PyramidPooling(8, 4, **k), "pool_sizes", "bins", [1, 2]),
        (lambda **k: training.MultiScaleLoss(**k), "normalise", "normalize", 2.0),
        (
            lambda **k: nms.Backbone(nn.Conv2d(3, 4, 3, 2, 1), **k),
            "normalise",
            "normalize",
            "imagenet",
        ),
    ],
)
def test_an_old_argument_warns_and_means_the_new_one(make, old, new, value):
    with pytest.warns(DeprecationWarning, match=f"the argument {old} is now called {new}"):
        module = make(**{old: value})
    assert getattr(module, new) == value
    with pytest.warns(DeprecationWarning, match=f"the attribute {old} is now called {new}"):
        assert getattr(module, old) == value
    with pytest.raises(ValueError, match=f"{new} must be given once, got {new} and {old}"):
        make(**{old: value, new: value})


def test_an_unknown_name_of_a_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Normalizers'"):
        _ = implicit.Normalizers
    with pytest.raises(AttributeError, match="no attribute 'UNets'"):
        _ = nms.UNets


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_warns_and_is_the_new_module(old):
    sys.modules.pop(f"neurenix_ms.{old}", None)
    with pytest.warns(
        DeprecationWarning, match=f"neurenix_ms.{old} has moved to .* until version 1.0"
    ):
        module = importlib.import_module(f"neurenix_ms.{old}")
    assert module is importlib.import_module(f"neurenix_ms.{MOVED[old]}")
    assert module.__spec__.name == f"neurenix_ms.{MOVED[old]}"


def test_a_class_pickled_under_its_old_module_is_found():
    old = b"cneurenix_ms.blocks\nConvNormAct\n."
    sys.modules.pop("neurenix_ms.blocks", None)
    with pytest.warns(DeprecationWarning, match="neurenix_ms.blocks has moved"):
        assert pickle.loads(old).__name__ == "ConvNormAct"


def test_files_of_earlier_names_are_read_without_a_warning(tmp_path):
    torch.manual_seed(0)
    model = implicit.Normalizer(implicit.NIF(1, 1, 1, shape_width=4, parameter_width=4))
    decoder = nms.UNetDecoder([4, 8], 2)
    for network, old in ((model, "Normaliser"), (decoder, "UNetDecoder")):
        nms.save(network, tmp_path / "new.nx")
        content = torch.load(tmp_path / "new.nx", weights_only=True)
        content["class"] = old
        if "out_channels" in content["config"]:
            content["config"]["output_channels"] = content["config"].pop("out_channels")
        torch.save(content, tmp_path / "old.nx")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = nms.load(tmp_path / "old.nx")
        assert type(read) is type(network)
        for name, value in network.state_dict().items():
            assert torch.equal(read.state_dict()[name], value)


def test_submodules_are_imported_when_they_are_used():
    code = (
        "import sys, neurenix_ms as nms; before = set(sys.modules); "
        "assert 'neurenix_ms.msnet' not in before and 'torchvision' not in before; "
        "assert nms.msnet.MSNet is nms.MSNet; assert 'msnet' in dir(nms); "
        "from neurenix_ms import *; assert TiledModel is nms.execution.TiledModel"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_public_submodule_is_an_attribute():
    found = {module.name for module in pkgutil.iter_modules(nms.__path__)}
    for name in found - {"_core", "command"}:
        assert getattr(nms, name) is importlib.import_module(f"neurenix_ms.{name}")


def test_nothing_slow_is_imported_beyond_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import neurenix_ms; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    own = set(run.stdout.split()) - set(sys.stdlib_module_names)
    assert own <= {"neurenix_ms", "torch"}, own
