"""A shared folder gives back the network, or says why not; nothing is half-done."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, as_list, build
from disks import POSIX, files_up_to, read_only
from torch import nn

from neurenix_ms import MultiScaleModel, UNet, create, from_pretrained, sharing
from neurenix_ms.backbones import Backbone
from neurenix_ms.sharing import save_pretrained
from neurenix_ms.timestepping import HierarchicalTimeStepper, TimeStepper

pytest.importorskip("safetensors")
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FIELDS = ["nif", "multiscale_nif", "last_layer_nif", "normalized_nif"]
STEPPERS = ["time_stepper", "standardized_network", "hits", "mlp"]
SEQUENCES = ["lstm_forecaster", "clockwork_rnn", "echo_state_network"]


def there_and_back(model: nn.Module, folder: Path) -> nn.Module:
    save_pretrained(model, folder)
    return from_pretrained(folder)


def equal(a: nn.Module, b: nn.Module, *inputs) -> bool:
    outputs = zip(as_list(a.eval()(*inputs)), as_list(b.eval()(*inputs)), strict=True)
    return type(a) is type(b) and all(torch.equal(x, y) for x, y in outputs)


@EVERY
def test_every_module_comes_back_equal_to_the_last_bit(case: Case, tmp_path: Path):
    model = build(case)
    if case.name.startswith("MultiScaleModel"):
        with pytest.raises(
            ValueError, match=r"MultiScaleModel\.base_model must be a network of neu"
        ):
            save_pretrained(model, tmp_path / "model")
        assert os.listdir(tmp_path) == []
        return
    x = case.inputs(case.size(13))
    inputs = [x]
    if "conditioned" in case.name:  # a class of the tests, of one input
        inner = type(model).__bases__[0](**model.config)
        inner.load_state_dict(model.state_dict())
        model, inputs = inner, [x, as_list(x)[-1].flatten(2).mean(2)]
    assert equal(model, there_and_back(model, tmp_path / "model"), *inputs)


@pytest.mark.parametrize("name", [*FIELDS, *STEPPERS, *SEQUENCES])
def test_networks_of_other_inputs_come_back(name: str, tmp_path: Path):
    model = create(name)
    other = there_and_back(model, tmp_path / "model")
    if name in FIELDS:
        field = getattr(model, "model", model)
        inputs = (torch.rand(5, field.parameter_dim), torch.rand(5, field.coordinate_dim))
    elif name == "hits":
        inputs = (torch.rand(2, 2), 7)
    else:
        inputs = (torch.rand(2, 3, 2) if name in SEQUENCES else torch.rand(2, 2),)
    with torch.no_grad():
        assert equal(model, other, *inputs)
    assert other.preset == name


def test_networks_inside_of_networks_come_back(tmp_path: Path):
    model = MultiScaleModel([1, 0.5], UNet(1, 2, [4]), "attention")
    model.add_scale(0.25)
    other = there_and_back(model, tmp_path / "model")
    assert other.scales == [1, 0.5, 0.25]
    assert equal(model, other, torch.rand(1, 1, 16, 20))
    stepper = HierarchicalTimeStepper([TimeStepper(model.base_model, k) for k in (1, 4)])
    assert there_and_back(stepper, tmp_path / "shared").step_sizes == [4, 1]


@pytest.mark.slow
def test_a_backbone_comes_back_without_a_download(tmp_path: Path):
    model = Backbone("resnet18", levels=[1, 2])
    assert equal(model, there_and_back(model, tmp_path / "model"), torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path):
    model = UNet(1, 1, [4]).to(dtype)
    other = there_and_back(model, tmp_path / "model")
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert equal(model, other, torch.rand(1, 1, 8, 8, dtype=dtype))


def test_the_files_are_plain(tmp_path: Path):
    from safetensors.torch import load_file

    model = create("unet", features=[4])
    model.save_pretrained(tmp_path / "model")
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(model.state_dict())
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (content["class"], content["preset"]) == ("UNet", "unet")
    assert content["config"]["features"] == [4]


def test_a_class_reads_its_own_networks_only(tmp_path: Path):
    UNet(1, 1, [4]).save_pretrained(tmp_path / "model")
    assert type(UNet.from_pretrained(tmp_path / "model")) is UNet
    with pytest.raises(ValueError, match=r"must hold a MultiScaleModel, got a UNet"):
        MultiScaleModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: nn.Linear(2, 3),
            r"Linear must be a network of neurenix_ms .* Linear of torch\.nn",
        ),
        (lambda: UNet(1, 1, [4], act=nn.ReLU), r"UNet\.act must be a name .* got <class .*code is"),
        (
            lambda: UNet(1, 1, [4], block=[lambda a, b: nn.Conv2d(a, b, 1), "double"]),
            r"UNet\.block\[0\] must be a name or another plain value to be shared, got <function",
        ),
        (lambda: TimeStepper(nn.Linear(2, 2), 1), r"TimeStepper\.network must be a network of neu"),
        (
            lambda: UNet(1, 1, [4]).to(torch.complex128),
            "dtype of safetensors, got torch.complex128",
        ),
    ],
    ids=range(5),
)
def test_what_cannot_be_written_is_named(make, words: str, tmp_path: Path):
    with pytest.raises(ValueError, match=words):
        save_pretrained(make(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "model"
    save_pretrained(UNet(1, 1, [4]), folder)
    with pytest.raises(ValueError, match=r"must be a new or empty folder, got .*overwrite=True"):
        save_pretrained(UNet(1, 1, [8]), folder)
    save_pretrained(UNet(1, 1, [8]), folder, overwrite=True)
    assert from_pretrained(folder).features == [8]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"or hold .* only, got \['notes.txt'\] in it"):
        save_pretrained(UNet(1, 1, [4]), folder, overwrite=True)
    assert from_pretrained(folder).features == [8]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder, got a file"):
        save_pretrained(UNet(1, 1, [4]), tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


@POSIX
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(UNet(1, 1, [4]), "model")
    for name in ("model", "new"):
        with files_up_to(1000), pytest.raises(OSError, match=rf"File too large: '.*{name}'$"):
            save_pretrained(UNet(1, 1, [8]), name, overwrite=True)
    with read_only(tmp_path), pytest.raises(PermissionError, match=r"denied: '.*new'$"):
        save_pretrained(UNet(1, 1, [8]), "new")
    assert os.listdir() == ["model"]
    assert from_pretrained("model").features == [4]


@pytest.mark.parametrize("step", ["json.dumps", "os.replace"])
def test_a_failed_save_leaves_what_was_there(step: str, tmp_path: Path, monkeypatch):
    save_pretrained(UNet(1, 1, [4]), tmp_path / "model")

    def fail(*args, **options):
        raise OSError("no space left")

    where = "neurenix_ms._core.io.atomic" if step == "os.replace" else "neurenix_ms.sharing.writing"
    monkeypatch.setattr(f"{where}.{step}", fail)
    for name in ("model", "new"):
        with pytest.raises(OSError, match="no space left"):
            save_pretrained(UNet(1, 1, [8]), tmp_path / name, overwrite=True)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    assert from_pretrained(tmp_path / "model").features == [4]


KILLED = """
import os, signal, sys
import neurenix_ms.sharing.writing as writing
from neurenix_ms import UNet
real = writing.write_weights
def killed(*args):
    real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
writing.write_weights = killed
writing.save_pretrained(UNet(1, 1, [8]), sys.argv[1], overwrite=True)
"""


@pytest.mark.slow
def test_a_killed_save_leaves_no_half_of_a_folder(tmp_path: Path):
    save_pretrained(UNet(1, 1, [4]), tmp_path / "model")
    for name in ("model", "new"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
        assert done.returncode == -9
    assert not (tmp_path / "new").exists()
    assert from_pretrained(tmp_path / "model").features == [4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(create("unet", features=[4, 8]), tmp_path / "model")
    return tmp_path / "model"


def edited(folder: Path, **changes) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if key in content["config"]:
            content["config"][key] = value
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def weights_changed(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    edited(folder, sha256=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class": "Linear"}, r"must hold one of \[.*\], got 'Linear'"),
        ({"class": "os.system"}, r"must hold one of \[.*\], got 'os.system'"),
        ({"class": ["UNet"]}, "must hold a class name, its config and versions"),
        ({"features": [4]}, r"does not fit UNet: missing \[\], unexpected \['level"),
        ({"features": [4, 16]}, r"shape mismatch \['level"),
        ({"features": [2**40]}, "too few weights for config.features"),
        ({"norm": "bach"}, "has a config that does not fit its class UNet: norm must be"),
        ({"format": "other"}, "must be a file of save_pretrained, got other JSON"),
        ({"version": 9}, "format version of at most 1, got 9; upgrade neurenix_ms"),
        ({"author": "me"}, r"must hold \[.*\] only, got \['author'\] too"),
        ({"versions": {"": "2"}}, "must hold a class name, its config and versions"),
        ({"sha256": "0" * 64}, r"must have the checksum of config.json, got another"),
        ({"class": "UNet", "block": {"class": "Linear", "config": {}}}, "must hold one of"),
    ],
    ids=range(13),
)
def test_a_config_that_does_not_fit_is_refused(changes: dict, words: str, folder: Path):
    edited(folder, **changes)
    with pytest.raises(ValueError, match=words):
        from_pretrained(folder)


def test_an_unknown_argument_is_refused(folder: Path):
    content = json.loads((folder / "config.json").read_text())
    content["config"]["feature"] = [4]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not fit its class UNet: .*'feature'"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.conv.bias"), r"missing \['head.conv.bias'\]"),
        (lambda s: s.update(more=torch.zeros(1)), r"unexpected \['more'\]"),
        (
            lambda s: s.update({"head.conv.bias": torch.zeros(2)}),
            r"shape mismatch \['head.conv.bias \(2,\) instead of \(1,\)'\]",
        ),
        (
            lambda s: s.update({"head.conv.bias": torch.zeros(1, dtype=torch.int32)}),
            r"dtype mismatch \['head.conv.bias torch.int32 instead of",
        ),
    ],
    ids=range(4),
)
def test_weights_that_do_not_fit_are_refused(change, words: str, folder: Path):
    weights_changed(folder, change)
    with pytest.raises(ValueError, match=words):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(name: str, part: float, folder: Path):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=f"{name} must be a .* got a corrupted"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"with config.json and model.safetensors, got no {name}"):
        from_pretrained(folder)


def test_a_changed_bit_is_found(folder: Path):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="the file is corrupted, or of another network"):
        from_pretrained(folder)


def test_a_deep_or_large_config_is_refused(folder: Path):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="must be a JSON file, got a corrupted one"):
        from_pretrained(folder)
    (folder / "config.json").write_bytes(b" " * (2**24 + 1))
    with pytest.raises(ValueError, match="must have at most 16777216 bytes, got more"):
        from_pretrained(folder)


@pytest.mark.slow
def test_the_import_of_the_package_needs_no_extra():
    code = "import sys, neurenix_ms.sharing; print({'huggingface_hub', 'safetensors'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_extra_is_named(monkeypatch, tmp_path: Path, folder: Path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'neurenix_ms\[hub\]'"):
        save_pretrained(UNet(1, 1, [4]), tmp_path / "new")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"the hub needs .* pip install 'neurenix_ms\[hub\]'"):
        from_pretrained("me/mine")
    assert os.listdir(tmp_path) == ["model"]


def test_weights_that_share_memory_come_back(tmp_path: Path):
    step = create("mlp", hidden=[4])
    model = HierarchicalTimeStepper([TimeStepper(step, 1), TimeStepper(step, 4)])
    rows = torch.arange(20.0).view(5, 4)
    step.layers[0].bias = nn.Parameter(rows[2])  # a part of a larger storage
    other = there_and_back(model, tmp_path / "model")
    assert torch.equal(other.steppers[1].network.layers[0].bias, rows[2])
    assert equal(model, other, torch.rand(2, 2), 7)


@pytest.mark.parametrize("name", ["save_pretrained", "push_to_hub", "from_pretrained"])
def test_a_method_takes_the_arguments_of_its_function(name: str):
    method, function = (
        dict(inspect.signature(getattr(place, name)).parameters) for place in (UNet, sharing)
    )
    for bound in ("self", "model", "cls"):
        method.pop(bound, None)
        function.pop(bound, None)
    assert method == function
