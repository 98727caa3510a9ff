"""A file gives back the model, or says why not; nothing is executed, nothing is half-done."""

import copy
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from cases import CASES, Case, as_list, build
from disks import POSIX, files_up_to
from torch import nn

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet, load, save
from neurenix_ms._core.config import check_plain
from neurenix_ms._core.io.room import save_to
from neurenix_ms.implicit import NIF, LastLayerNIF, MultiScaleNIF, Normalizer
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import (
    AdaptiveTimeStepper,
    ClockworkRNN,
    EchoStateNetwork,
    FourierLatents,
    HierarchicalTimeStepper,
    LinearLatents,
    LSTMForecaster,
    MultirateStepper,
    StandardizedNetwork,
    StrideErrors,
    TimeStepper,
)

MODELS = {
    "unet": lambda: UNet(3, 1, [4, 8], dropout=0.1, norm="group"),
    "pyramid": lambda: PyramidNetwork(3, 2, 3, 4, return_pyramid=True),
    "nested": lambda: MultiScaleModel([1, 0.5], PyramidNetwork(3, 2, 2, 4), "attention"),
    "no base model": lambda: MultiScaleModel([1, 0.5], fusion_method="mean"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_library_model_comes_back_by_itself(name, tmp_path):
    model = MODELS[name]().eval()
    x = torch.randn(1, 3, 16, 20)
    expected = model(x)  # builds what is built lazily
    save(model, tmp_path / "model.any")
    loaded = load(tmp_path / "model.any").eval()
    for a, b in zip(expected, loaded(x), strict=True):
        assert torch.equal(a, b)


def test_scales_added_later_come_back(tmp_path):
    model = MultiScaleModel([1.0], UNet(1, 1, [4]))
    model.add_scale(0.5)
    save(model, tmp_path / "m.nx")
    assert load(tmp_path / "m.nx").scales == [1.0, 0.5]


def test_the_file_is_plain(tmp_path):
    save(UNet(1, 1, [4]), tmp_path / "m.nx")
    content = torch.load(tmp_path / "m.nx", weights_only=True)
    assert content["class"] == "UNet"
    assert content["config"]["features"] == [4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 3),
        lambda: MultiScaleModel([1.0], nn.Conv2d(1, 1, 1)),
        lambda: UNet(1, 1, [4], act=nn.ReLU),
    ],
)
def test_other_models_are_filled_when_given(make, tmp_path):
    model, other = make(), make()
    save(model, tmp_path / "m.nx")
    with pytest.raises(ValueError, match=r"cannot be rebuilt from the file alone; .*model="):
        load(tmp_path / "m.nx")
    assert load(tmp_path / "m.nx", model=other) is other
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_lazy_head_is_built_from_the_file(tmp_path):
    model = MultiScaleModel([1, 0.5], nn.Conv2d(1, 4, 1), "attention")
    model(torch.zeros(1, 1, 4, 4))
    save(model, tmp_path / "m.nx")
    other = load(
        tmp_path / "m.nx", model=MultiScaleModel([1, 0.5], nn.Conv2d(1, 4, 1), "attention")
    )
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(other(x), model(x))


def test_a_model_that_does_not_fit_is_left_unchanged(tmp_path):
    save(UNet(1, 1, [4, 8]), tmp_path / "m.nx")
    other = UNet(1, 2, [4, 8])
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(
        ValueError, match=r"shape mismatch \['head.conv.weight \(1, 4, 1, 1\) instead of"
    ):
        load(tmp_path / "m.nx", model=other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"missing \['level"):
        load(tmp_path / "m.nx", model=UNet(1, 1, [4, 8, 8]))
    with pytest.raises(ValueError, match=r"unexpected \['level"):
        load(tmp_path / "m.nx", model=UNet(1, 1, [4]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"file of neurenix_ms\.save, got a corrupted or foreign"):
        load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.nx"
    path.write_text("not a model")
    with pytest.raises(ValueError, match="got a corrupted or foreign file"):
        load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="got another torch"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.nx")


def test_a_newer_or_unknown_content_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 99}, path)
    with pytest.raises(ValueError, match="version of at most 1, got 99"):
        load(path)
    torch.save({**content, "class": "Sequential"}, path)
    with pytest.raises(ValueError, match=r"must hold one of \[.*'UNet'.*\], got 'Sequential'"):
        load(path)
    torch.save({**content, "config": {"nonsense": 1}}, path)
    with pytest.raises(ValueError, match="config that does not fit its class"):
        load(path)
    torch.save({**content, "state_dict": {"a": 1}}, path)
    with pytest.raises(ValueError, match="does not hold a model: 'a' is a int, not a tensor"):
        load(path)
    torch.save({key: content[key] for key in ("format", "version", "class")}, path)
    with pytest.raises(ValueError, match="must hold a class name and a state dict"):
        load(path)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"format": "neurenix_ms model", "x": Attack(marker)}, tmp_path / "a.nx")
    (tmp_path / "b.nx").write_bytes(pickle.dumps(Attack(marker)))
    for name in ("a.nx", "b.nx"):
        with pytest.raises(ValueError, match="got a corrupted or foreign file"):
            load(tmp_path / name)
    assert not marker.exists()


@POSIX
@pytest.mark.parametrize("format", ["nx", "safetensors"])
def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path, format):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    before = path.read_bytes()
    larger = UNet(1, 1, [8])
    for size in range(0, 18_000, 1500):  # torch raises errors of its own at some places
        with files_up_to(size), pytest.raises(OSError, match=rf"File too large: '{path}'$"):
            save(larger, path, format=format)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.nx"]


def test_another_error_of_torch_while_saving_is_not_that_of_the_disk(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such storage")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="no such storage"):
        save_to(io.BytesIO(), {})


def test_a_killed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    script = f"""
        import os, signal, torch
        from neurenix_ms import UNet, save
        write = torch.save
        def killed(content, file):
            write(content, file)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = killed
        save(UNet(1, 1, [8]), {str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load(path).features == [4]


BUILT_OF_FOREIGN_NUMBERS = {
    "UNet": lambda: UNet(
        np.int64(3),
        np.int64(4),
        features=list(np.array([4, 8])),
        dropout=np.float64(0.1),
        norm=np.str_("group"),
        bilinear=np.bool_(True),
        kernel_size=torch.tensor(3),
    ),
    "UNet-array": lambda: UNet(3, 2, np.array([4, 8]), bottleneck_channels=np.int32(6)),
    "UNet-tensor": lambda: UNet(3, 2, torch.tensor([4, 8]), residual_channel=None),
}


@pytest.mark.parametrize("name", BUILT_OF_FOREIGN_NUMBERS)
def test_a_model_of_foreign_numbers_has_a_plain_config_and_comes_back(name, tmp_path):
    torch.manual_seed(0)
    model = BUILT_OF_FOREIGN_NUMBERS[name]().eval()
    check_plain("config", model.config)
    save(model, tmp_path / "m.nx")
    loaded = load(tmp_path / "m.nx").eval()
    x = torch.randn(1, 3, 16, 20)
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (torch.eye(3).to_sparse(), r"'odd'\] must be a dense tensor of numbers on a device, got"),
        (torch.zeros(2, device="meta"), "must be a dense tensor"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "must be a dense tensor"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "must be a dense tensor"),
    ],
)
def test_what_load_could_not_read_is_refused_before_it_is_written(entry, words, tmp_path):
    path = tmp_path / "m.nx"
    save(nn.Linear(1, 1), path)
    before = path.read_bytes()
    model = nn.Linear(1, 1)
    model.register_buffer("odd", entry)
    with pytest.raises(ValueError, match=words):
        save(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.nx"]


class WithState(nn.Linear):
    def get_extra_state(self):
        return {"steps": 3}


def test_a_state_that_is_no_tensor_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"'_extra_state'\] must be a dense tensor .*not a tensor"):
        save(WithState(1, 1), tmp_path / "m.nx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dropout", np.float64(0.1), "dropout must be a plain number, string, .* of type float64"),
        ("features", [np.int64(4)], r"features\[0\] must be a plain number, .* of type int64"),
        ("features", np.array([4]), "features must be a plain number, .* of type ndarray"),
        ("norm", np.str_("group"), "norm must be a plain number, .* of type str_"),
        ("dropout", torch.tensor(0.1), "dropout must be a plain number, .* of type Tensor"),
    ],
)
def test_an_argument_that_was_changed_to_a_foreign_one_is_refused(name, value, words, tmp_path):
    model = UNet(1, 1, [4])
    setattr(model, name, value)
    with pytest.raises(ValueError, match=words):
        save(model, tmp_path / "m.nx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_comes_back(dtype, tmp_path):
    model = UNet(1, 1, [4]).to(dtype)
    save(model, tmp_path / "m.nx")
    for a, b in zip(model.parameters(), load(tmp_path / "m.nx").parameters(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_a_model_of_several_types_comes_back_as_it_was(tmp_path):
    model = UNet(1, 1, [4]).half()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    save(model, tmp_path / "m.nx")
    loaded = load(tmp_path / "m.nx")
    kinds = [(name, p.dtype) for name, p in loaded.state_dict().items()]
    assert kinds == [(name, p.dtype) for name, p in model.state_dict().items()]
    assert all(p.requires_grad for p in loaded.parameters())


def test_versions_of_layers_are_kept_for_models_that_ask_for_them(tmp_path):
    class Versioned(nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state, prefix, metadata, *args):
            self.seen = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *args)

    save(Versioned(1, 1), tmp_path / "m.nx")
    assert load(tmp_path / "m.nx", model=Versioned(1, 1)).seen == 7


def test_a_view_is_stored_and_an_expanded_buffer_too(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("wide", torch.ones(1).expand(1000))
    model.register_buffer("part", torch.arange(10.0)[3:5])
    model.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    save(model, tmp_path / "m.nx")
    other = nn.Linear(2, 2)
    other.register_buffer("wide", torch.zeros(1000))
    other.register_buffer("part", torch.zeros(2))
    other.register_buffer("turned", torch.zeros(3, 2))
    load(tmp_path / "m.nx", model=other)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_where_tensors_go_can_be_said(tmp_path):
    save(UNet(1, 1, [4]), tmp_path / "m.nx")
    for place in ("cpu", torch.device("cpu"), {"cpu": "cpu"}, {}, None):
        assert next(load(tmp_path / "m.nx", map_location=place).parameters()).is_cpu
    with pytest.raises(ValueError, match="map_location must be "):
        load(tmp_path / "m.nx", map_location=3)


def test_a_file_of_a_process_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(UNet(1, 1, [4]), tmp_path / "m.nx")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(before)
    assert load(tmp_path / "m.nx").features == [4]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_public_module_comes_back_with_equal_outputs(case: Case, tmp_path):
    if case.spatial_dims == 3 and "PyramidNetwork" in case.name:
        size = (8, 9, 10)
    else:
        size = case.size(9 if case.spatial_dims == 3 else 13)
    model = build(case).eval()
    x = case.inputs(size, batch=1)
    expected = model(x)
    save(model, tmp_path / "m.nx")
    content = torch.load(tmp_path / "m.nx", weights_only=True)
    other = None if content["config"] is not None else case.build()
    loaded = load(tmp_path / "m.nx", model=other).eval()
    for a, b in zip(as_list(expected), as_list(loaded(x)), strict=True):
        assert torch.equal(a, b)


def foreign(value, how: str):
    """A plain argument as an array library gives it; None where it has no such form."""
    if isinstance(value, bool):
        return {"numpy": np.bool_(value), "tensor": torch.tensor(value)}[how]
    if isinstance(value, int | float):
        number = np.asarray(value)[()]
        return {"numpy": number, "tensor": torch.tensor(value, dtype=WIDE[type(value)])}[how]
    if isinstance(value, str):
        return np.str_(value)
    if isinstance(value, list) and value and all(type(v) in (int, float) for v in value):
        return (
            np.asarray(value) if how == "numpy" else torch.tensor(value, dtype=WIDE[type(value[0])])
        )
    return value


WIDE = {int: torch.int64, float: torch.float64}
OTHERS = {
    "NIF": lambda: NIF(1, 2, shape_width=4, parameter_width=4),
    "MultiScaleNIF": lambda: MultiScaleNIF(1, 2, shape_width=4, parameter_width=4, omega_0=3.0),
    "LastLayerNIF": lambda: LastLayerNIF(1, 2, shape_width=4, parameter_width=4),
    "Normalizer": lambda: Normalizer(NIF(1, 2, shape_width=4, parameter_width=4)),
    "MLP": lambda: MLP(2, 3, [4, 5]),
    "TimeStepper": lambda: TimeStepper(MLP(2, 2, [4]), 3),
    "HierarchicalTimeStepper": lambda: HierarchicalTimeStepper([TimeStepper(MLP(2, 2, [4]), 3)]),
    "StrideErrors": lambda: StrideErrors(MLP(2, 2, [4]), [0.0, 1.0], [1.0, 2.0]),
    "AdaptiveTimeStepper": lambda: AdaptiveTimeStepper(
        [TimeStepper(MLP(2, 2, [4]), 3)],
        StrideErrors(MLP(2, 2, [4]), [0.0, 1.0], [1.0, 2.0]),
        0.1,
    ),
    "FourierLatents": lambda: FourierLatents(2, [6, 5], [3, 2]),
    "LinearLatents": lambda: LinearLatents(3, [2, 1]),
    "MultirateStepper": lambda: MultirateStepper(
        MLP(9, 3, [4]), LinearLatents(3, [3, 2]), [1, 4], hidden_size=4, change_scale=0.5
    ),
    "LSTMForecaster": lambda: LSTMForecaster(2, 4),
    "ClockworkRNN": lambda: ClockworkRNN(2, 8, 2),
    "EchoStateNetwork": lambda: EchoStateNetwork(2, 8),
    "StandardizedNetwork": lambda: StandardizedNetwork(
        MLP(2, 2, [4]), [0.0, 1.0], [1.0, 2.0], [1.0, 1.0]
    ),
}
MAKERS = {case.name: case.build for case in CASES if case.spatial_dims == 2} | OTHERS


@pytest.mark.parametrize("how", ["numpy", "tensor"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_constructor_takes_foreign_numbers_and_comes_back(name, how, tmp_path):
    torch.manual_seed(0)
    plain = MAKERS[name]()
    model = type(plain)(**{k: foreign(v, how) for k, v in plain.config.items()})
    fixed = {k: v for k, v in model.config.items() if not isinstance(v, nn.Module)}
    if "steppers" not in fixed:
        check_plain("config", {k: v for k, v in fixed.items() if not callable(v)})
        assert fixed == {k: v for k, v in plain.config.items() if k in fixed}
    save(model, tmp_path / "m.nx")
    content = torch.load(tmp_path / "m.nx", weights_only=True)
    loaded = load(
        tmp_path / "m.nx", model=None if content["config"] is not None else MAKERS[name]()
    )
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize("nested", [False, True])
def test_an_attention_model_saved_before_its_first_forward_by_version_1_is_loaded(nested, tmp_path):
    """Its score head was built in the first forward, so the file has none."""
    fused = MultiScaleModel([1, 0.5], PyramidNetwork(3, 2, 2, 4), "attention").eval()
    model = nn.Sequential(fused, nn.Conv2d(2, 1, 1)) if nested else fused
    save(model, tmp_path / "m.nx")
    content = torch.load(tmp_path / "m.nx", weights_only=True)
    state = content["state_dict"]
    prefix = "0." if nested else ""
    for name in [name for name in state if name.startswith(f"{prefix}scores.")]:
        del state[name]
    state._metadata[prefix.rstrip(".")]["version"] = 1
    torch.save(content, tmp_path / "old.nx")
    loaded = load(tmp_path / "old.nx", model=copy.deepcopy(model) if nested else None).eval()
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(loaded(x), model(x))  # a fresh head takes the mean
    state._metadata[prefix.rstrip(".")]["version"] = 2
    torch.save(content, tmp_path / "new.nx")
    with pytest.raises(ValueError, match=r"missing \['.*scores\.0\.bias"):
        load(tmp_path / "new.nx", model=copy.deepcopy(model) if nested else None)


def test_a_safetensors_file_is_the_same_model(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = UNet(1, 2, features=[4, 8], norm="batch").to(torch.bfloat16)
    save(model, tmp_path / "m.safetensors", format="safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.config == model.config
    wanted = model.state_dict()
    for found in (again.state_dict(), safetensors.load_file(tmp_path / "m.safetensors")):
        assert sorted(found) == sorted(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert all(found[name].dtype == wanted[name].dtype for name in wanted)
    own = nn.Sequential(nn.Linear(3, 2))
    save(own, tmp_path / "own", format="safetensors")
    same = load(tmp_path / "own", nn.Sequential(nn.Linear(3, 2)), {"cpu": "cpu"})
    assert torch.equal(same[0].weight, own[0].weight)
    with pytest.raises(ValueError, match="holds a Sequential that cannot be rebuilt from the file"):
        load(tmp_path / "own")


def test_a_safetensors_file_that_does_not_fit_is_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m"
    good = {"version": 1, "class": "UNet", "config": {"in_channels": 1}, "versions": {}}
    for metadata, message in (
        (None, "must be a file of neurenix_ms.save, got safetensors without a class"),
        ("{", "does not hold a model: "),
        (json.dumps(good | {"version": 9}), "a format version of at most 1, got 9; upgrade"),
        (json.dumps(good | {"class": "os.system"}), "must hold one of .*, got 'os.system'"),
        (json.dumps(good | {"versions": {"": "x"}}), "must hold a class name, its config and ver"),
        (json.dumps(good | {"config": {"in_channels": 10**9}}), "has too few weights for config"),
    ):
        about = None if metadata is None else {"neurenix_ms": metadata}
        safetensors.save_file({"w": torch.zeros(2)}, path, about)
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="must be a safetensors file, got a corrupted or foreign"):
        load(path)
    wide = nn.Linear(2, 2).to(torch.complex128)
    with pytest.raises(
        ValueError, match=r"must have a dtype of safetensors, got torch\.complex128"
    ):
        save(wide, tmp_path / "wide", format="safetensors")
    assert not (tmp_path / "wide").exists()
