"""Configs of `fit`: sections, overrides, and what they may name."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from neurenix_ms.fitting import configs
from neurenix_ms.fitting.configs import (
    allowed,
    check_classes,
    config_path,
    copied,
    differences,
    overridden,
    parsed,
    read_config,
    ready_configs,
)
from neurenix_ms.fitting.running import _Cli, prepared, short_names


def config(**model: object) -> dict:
    return {
        "model": {"class_path": "Regression", "init_args": {"network": "unet", **model}},
        "data": {"class_path": "Images", "init_args": {"inputs": "a.npy", "targets": "b.npy"}},
        "trainer": {"max_epochs": 1},
    }


@pytest.mark.parametrize("name", sorted(ready_configs()))
def test_every_ready_config_fits_its_classes(name: str, tmp_path: Path):
    content = prepared(name)
    assert content["out"] == f"runs/{name}"
    assert ready_configs()[name].endswith(".")
    made = _Cli(content, tmp_path, False, False)
    assert made.trainer.max_epochs == content["trainer"]["max_epochs"]
    assert type(made.model).__name__ in short_names()


def test_a_config_is_found_by_path_or_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("segment_images").name == "segment_images.yaml"
    made = copied(config_path("segment_images"), Path("segment_images"))
    assert config_path("segment_images") == made
    assert made.read_bytes() == (configs.READY / "segment_images.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"--copy must name a new file, got segment_images, which"):
        copied(made, made)
    with pytest.raises(ValueError, match=r"CONFIG must be a YAML file or one of \['.*got 'none'"):
        config_path("none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", r"must hold the sections \['seed_everything'.*got \[1, 2\]"),
        ("modell: 1", r"sections \[.*\] only, got 'modell'; similar: 'model'"),
        ("other: 1", r"sections \[.*\] only, got 'other'$"),
        ("model: 1", r"must hold model with a class_path and init_args, got 1"),
        ("model: {class_path: 3}", r"must hold model with a class_path and init_args, got \{"),
        ("model: {class_path: a}\ndata: {class_path: b}\ntrainer: 3", "hold trainer as a mapping"),
        ("a: [1", r"must be a YAML file of plain values, got while parsing"),
        (
            "a: !!python/object/apply:os.getcwd []",
            r"must be a YAML file of plain values, got could",
        ),
        ("a: &x [1]\nb: *x", r"plain values, got aliases \(\*name\) must not be used in"),
        ("a: 2020-01-01", r"must be a plain number, string, None, list or dict, got datetime"),
        ("1: 2", r"must have strings as keys, got 1"),
    ],
)
def test_another_file_is_refused_in_one_line(text: str, words: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_a_config_has_a_largest_size(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(configs, "LARGEST", 3)
    (tmp_path / "c.yaml").write_text("a: 100")
    with pytest.raises(ValueError, match=r"must have at most 3 bytes, got more"):
        read_config(tmp_path / "c.yaml")


def test_numbers_are_those_of_people():
    assert parsed("[1e-3, 2E5, 1.5, 7, .5e1, x1e3, null]") == [1e-3, 2e5, 1.5, 7, 5.0, "x1e3", None]


def test_overrides_replace_and_add_values():
    before = config(arguments={"features": [4]})
    before["trainer"]["callbacks"] = [{"class_path": "a.B", "init_args": {"x": 1}}, 5]
    words = ["--model.learning_rate=1e-4", "--model.arguments.features", "[8, 16]", "--out=r"]
    words += ["--model.init_args.schedule=null", "--data.class_path=Points", "--data.size=3"]
    words += ["--trainer.callbacks.0.x=2", "--trainer.callbacks.1=6", "--seed_everything=7"]
    after = overridden(before, words)
    assert after["model"]["init_args"] == {
        "network": "unet",
        "arguments": {"features": [8, 16]},
        "learning_rate": 1e-4,
        "schedule": None,
    }
    assert (after["data"]["class_path"], after["data"]["init_args"]["size"]) == ("Points", 3)
    assert after["trainer"]["callbacks"] == [{"class_path": "a.B", "init_args": {"x": 2}}, 6]
    assert (after["out"], after["seed_everything"]) == ("r", 7)
    assert before == {**config(arguments={"features": [4]}), "trainer": before["trainer"]}
    assert "learning_rate" not in before["model"]["init_args"]
    assert differences(config(), overridden(config(), ["--model.network=msnet"])) == [
        "model.init_args.network was 'unet', now 'msnet'"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], r"what follows CONFIG must be options such as --data.size=64, got 'x'"),
        (["--data.size"], r"--data.size must have a value, got none"),
        (["--data.size", "--out=3"], r"--data.size must have a value, got none"),
        (["--size=3"], r"--size must begin with one of \['seed_everything', .*got 'size'"),
        (["--data.size=[1"], r"--data.size must have a value in YAML, got '\[1'"),
        (["--out.a.b=1"], r"--out.a.b must lead to a value of the config, got 'r' at 'a'"),
        (["--out.a=1"], r"--out.a must lead to a value of the config, got 'r'"),
        (["--data.size=2020-01-01"], r"--data.size must be a plain number"),
    ],
)
def test_an_override_of_no_value_of_the_config_is_refused(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        overridden({**config(), "out": "r"}, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("os.system", r"name a class of neurenix_ms, torch.nn.*got 'os.system'; --trust"),
        ("torch.hub.load", r"name a class of neurenix_ms, torch.nn.*got 'torch.hub.load'"),
        ("neurenix_ms.nothing.X", r"must name a class, got 'neurenix_ms.nothing.X', which is not"),
        ("torch.nn.functional.relu", r"must name a class, got 'torch.nn.functional.relu'"),
        (
            "neurenix_ms.command.fit.Path",
            r"a class of its package, got '.*', which is from pathlib",
        ),
        ("torch.nn.modules.module.OrderedDict", r"its package, got .* which is from collections"),
        ("Unet", r"must be one of \[.*\] or a dotted name, got 'Unet'"),
        ("Imagess", r"got 'Imagess'; similar: Images"),
        ("a b", r"must be the name of a class, got 'a b'"),
        (3, r"must be the name of a class, got 3"),
    ],
)
def test_classes_of_other_packages_are_refused(name: object, words: str):
    content = config(loss={"class_path": name})
    with pytest.raises(ValueError, match=r"model.init_args.loss.class_path .*" + words):
        check_classes(content, short_names())


def test_names_of_arguments_are_checked_with_similar_ones():
    with pytest.raises(
        ValueError, match=r"data.init_args must be among .* 'inptus'; similar: inputs"
    ):
        check_classes(overridden(config(), ["--data.inptus=3"]), short_names())
    content = config()
    del content["data"]["init_args"]["targets"]
    with pytest.raises(ValueError, match=r"must hold \['targets'\] for Images, got \['inputs'\]"):
        check_classes(content, short_names())
    content["data"]["init_args"] = 3
    with pytest.raises(ValueError, match=r"data.init_args must be a mapping, got 3"):
        check_classes(content, short_names())


def test_allowed_names_begin_with_whole_packages():
    assert allowed("torch.nn.MSELoss")
    assert allowed("neurenix_ms.UNet")
    assert not allowed("torch.nnx.X")
    assert not allowed("neurenix_ms_evil.X")
    assert not allowed("lightning.pytorch.Trainer")


EVIL = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nclass X: pass\n"
WAYS = [  # places where a value could make jsonargparse import a module
    "--model.loss.class_path=evil_module.X",
    "--model.loss=evil_module.X",
    "--model.metrics={a: evil_module.X}",
    "--model.metrics={a: {class_path: evil_module.X}}",
    "--trainer.callbacks=evil_module.X",
    "--trainer.callbacks=[evil_module.X]",
    '--trainer.callbacks=[\'{"class_path": "evil_module.X"}\']',
    "--trainer.logger=evil_module.X",
    "--trainer.strategy=evil_module.X",
    "--trainer.strategy={class_path: evil_module.X}",
    "--trainer.plugins=evil_module.X",
    "--trainer.profiler=evil_module.X",
    "--trainer.callbacks=evil.yaml",
    "--trainer={callbacks.class_path: evil_module.X}",
    "--trainer.accelerator=evil_module.X",
    "--data=evil_module.X",
    "--data.class_path=evil_module.X",
    "--model.class_path=evil_module.X",
    "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {on_fit_start: evil_module.X}}]",
    "--model.loss={class_path: neurenix_ms.training.DeepSupervisionLoss, "
    "init_args: {loss: evil_module.X}}",
]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=str(i), marks=[pytest.mark.slow] if i % 3 else [])
        for i, way in enumerate(WAYS)
    ],
)
def test_no_value_imports_another_module(way: str, tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text(EVIL)
    (tmp_path / "evil.yaml").write_text("class_path: evil_module.X\n")
    with contextlib.suppress(ValueError, TypeError, MisconfigurationException):
        _Cli(prepared("segment_images", [way]), tmp_path, False, False)
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "evil_module.ran").exists()


def test_trust_allows_classes_of_the_user(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_loss.py").write_text(
        "from torch import nn\nclass Cubic(nn.Module):\n"
        "    def forward(self, x, y):\n        return (x.mean(1) - y).abs().pow(3).mean()\n"
    )
    words = ["--model.loss.class_path=own_loss.Cubic"]
    with pytest.raises(ValueError, match="--trust allows others, whose code then runs"):
        prepared("segment_images", words)
    made = _Cli(prepared("segment_images", words, trust=True), tmp_path, False, True)
    assert type(made.model.loss.loss).__name__ == "Cubic"
    assert made.model.loss(torch.ones(1, 2, 3), torch.zeros(1, 3)).item() == 1
