"""Networks by name: every public one, built as its preset says, and an ordinary module."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import neurenix_ms as nms
from docs_tools.source import documented
from neurenix_ms import create, list_models, load, save
from neurenix_ms._core.config import Configured
from neurenix_ms.registry import get_preset
from neurenix_ms.registry.building import PRESETS

BASE_CLASSES = {"SequenceModel"}
IMAGES = ["unet", "residual_unet", "unet_convnext", "unet_wavelet", "unet_blur", "pyramid_network"]


def public_classes() -> set[str]:
    """Classes on API pages that can be built from their config."""
    things = {}
    for path in documented():
        module, _, name = path.rpartition(".")
        things[name] = getattr(importlib.import_module(module), name)
    return {n for n, t in things.items() if isinstance(t, type) and issubclass(t, Configured)}


def test_every_public_network_has_a_name():
    named = {preset.cls for preset in PRESETS.values()}
    assert named == public_classes() - BASE_CLASSES | {"MS_Net"}


@pytest.mark.parametrize("name", list_models())
def test_a_preset_is_plain_data_and_builds_its_class(name: str):
    preset = get_preset(name)
    assert json.loads(json.dumps(preset.arguments)) == preset.arguments
    assert name == preset.name == name.lower()
    assert preset.source
    assert "\n" not in preset.description
    with torch.device("meta" if preset.cls == "UNet" else "cpu"):
        model = create(name)
    assert type(model).__name__ == preset.cls
    assert model.preset == name
    plain = (bool, int, float, str, type(None))
    for argument, value in preset.arguments.items():
        if isinstance(value, plain):
            assert model.config.get(argument, value) == value


@pytest.mark.parametrize("name", IMAGES)
def test_networks_of_images_keep_the_size(name: str):
    small = {"base_channels": 4} if name == "pyramid_network" else {"features": [4, 8]}
    if name != "pyramid_network":
        small["bottleneck_channels"] = 8
    model = create(name, in_channels=1, **small)
    assert model(torch.zeros(2, 1, 21, 18)).shape == (2, 1, 21, 18)


def test_overrides_replace_the_arguments_of_the_preset():
    model = create("nnunet_3d_fullres", in_channels=4, norm="group", deep_supervision=False)
    assert (model.in_channels, model.norm, model.deep_supervision) == (4, "group", False)
    assert model.stride == [[1, 2, 2], 2, 2, 2, [1, 2, 2]]
    inside = {"class": "MLP", "config": {"in_features": 3, "out_features": 3}}
    assert create("time_stepper", network=inside).network.in_features == 3
    own = nn.Linear(3, 3)
    assert create("time_stepper", network=own).network is own


def test_what_is_changed_does_not_change_the_preset():
    get_preset("nnunet_3d_fullres").arguments["stride"].append(3)
    create("unet_blur").features.append(3)
    assert len(get_preset("nnunet_3d_fullres").arguments["stride"]) == 5
    assert create("unet_blur").features == [32, 64, 128, 256]


def test_a_pattern_selects_names():
    assert list_models() == sorted(PRESETS)
    assert list_models("UNet_mil*") == ["unet_milesial", "unet_milesial_bilinear"]
    assert list_models("?if") == ["nif"]
    assert "nnunet_2d" in list_models("unet")
    assert list_models("transformer") == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create("UNett"), r"one of list_models\(\), got 'UNett'; similar: 'unet'"),
        (lambda: create("qqq"), r"got 'qqq'$"),
        (lambda: create("unet", feature=[4]), r"UNet takes \[.*\], got 'feature'; similar: 'feat"),
        (lambda: create("unet", norm="bach"), "norm must be .* got 'bach'"),
        (lambda: create("unet", kernel_size=[3, 3]), "list of 5, one per level"),
        (
            lambda: create("time_stepper", network={"class": "MLP", "config": {}}),
            r"MLP needs \['in_features', 'out_features'\], got \[\]",
        ),
        (
            lambda: create("time_stepper", network={"class": "Linear", "config": {}}),
            r"a class must be one of \[.*\], got 'Linear'",
        ),
        (
            lambda: create("time_stepper", network={"class": [], "config": {}}),
            "a network must be given as",
        ),
        (lambda: get_preset(3), "name must be a string, got 3"),
    ],
    ids=range(9),
)
def test_a_mistake_is_named(call, words: str):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_is_created_is_saved_and_loaded(tmp_path):
    model = create("attention_to_scale", base_model=create("unet", features=[4]), channels=1)
    save(model, tmp_path / "model.nx")
    x = torch.randn(1, 3, 24, 20)
    assert torch.equal(load(tmp_path / "model.nx").eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "first",
    ["MLP", *(pytest.param(c, marks=pytest.mark.slow) for c in ("FluxConservation", "NIF"))],
)
def test_a_new_process_finds_every_class(first: str):
    names = sorted({preset.cls for preset in PRESETS.values()})
    code = (
        "from neurenix_ms._core.io.stored import class_named\n"
        f"for name in {names}: assert class_named(name).__name__ == name"
    )
    start = f"from neurenix_ms._core.io.stored import class_named; class_named({first!r})\n"
    subprocess.run([sys.executable, "-c", start + code], check=True)


def test_names_are_at_the_top_level():
    assert nms.create is create
    assert {"create", "list_models"} <= set(nms.__all__)
