"""Whole-module pickles give their state dicts, and hostile ones give an error and nothing else."""

import contextlib
import io
import os
import pickle
import re
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neurenix_ms.weights.pickles import read_pickle
from neurenix_ms.weights.rename import check_names, fill, rename

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

FOREIGN_CODE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3)
        self.norm = nn.BatchNorm3d(channels)
        self.note = {"kind": Kind(), "sizes": [1, (2, 3)], "device": torch.device("cpu")}

class Kind:
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList([Block(1), Block(2)])
        self.register_buffer("scale", torch.arange(6).reshape(2, 3).T)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("unused", None)
        self.tied = self.models[0].conv
        self.half_precision = nn.Parameter(torch.ones(3).half())
        self.empty = nn.Parameter(torch.ones(0, 4))
        self.args = __import__("argparse").Namespace(depth=2)
        self.step = self.forward

    def __setstate__(self, state):
        raise AssertionError("the foreign class was used")
"""


@pytest.fixture
def foreign_net() -> Iterator[nn.Module]:
    """A model of classes that are only importable until the file is written."""
    module = types.ModuleType("project_that_is_not_installed")
    sys.modules[module.__name__] = module
    exec(FOREIGN_CODE, module.__dict__)
    yield module.Net()
    sys.modules.pop(module.__name__, None)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(value: object, zipped: bool = True, **options: Any) -> Path:
        path = tmp_path / "model.pt"
        torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
        return path

    return save


def legacy_bytes(root: bytes, keys: tuple[str, ...] = (), storages: bytes = b"") -> bytes:
    """A file in the format of before torch 1.6 around the pickle `root`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(value, protocol=2) for value in head]
    return b"".join([*parts, root, pickle.dumps(list(keys), protocol=2), storages])


def text(value: str) -> bytes:
    """The opcode that puts a text on the stack."""
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def tensor_file(path: Path, tensor_args: tuple[Any, ...], stored: bytes, count: int) -> Path:
    """A zip file of a state dict with one float tensor, made with any numbers whatever."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            is_reference = isinstance(value, Reference)
            return ("storage", torch.FloatStorage, "0", "cpu", count) if is_reference else None

    class Tensor:
        def __reduce__(self) -> Any:
            args = (Reference(), *tensor_args, False, {})
            return torch._utils._rebuild_tensor_v2, args

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"weight": Tensor()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/data/0", stored)
    return path


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_state_dict_of_a_foreign_module_is_read_without_its_classes(
    foreign_net: nn.Module, saved: Any, zipped: bool, protocol: int
):
    expected = foreign_net.state_dict()
    path = saved(foreign_net, zipped, pickle_protocol=protocol)
    del sys.modules["project_that_is_not_installed"]
    state = read_pickle(path)
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)
        assert not state[name].requires_grad
    assert state["tied.weight"].data_ptr() == state["models.0.conv.weight"].data_ptr()
    assert "project_that_is_not_installed" not in sys.modules


@FORMATS
def test_a_state_dict_comes_back_as_it_is(saved: Any, zipped: bool):
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    state = read_pickle(saved({**model.state_dict(), "mask_values": [0, 1]}, zipped))
    assert state.pop("mask_values") == [0, 1]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(state)
    assert list(read_pickle(saved(model.state_dict(), zipped))) == list(model.state_dict())


@FORMATS
@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_of_a_checkpoint_is_read(saved: Any, zipped: bool, name: str):
    model = nn.Linear(3, 2)
    held = model if name == "model" else model.state_dict()
    more = {"epoch": 3, "hyper_parameters": {"root": Path("data")}, "optimizer_states": [{}]}
    found = read_pickle(saved({name: held, **more}, zipped))
    assert list(found) == ["weight", "bias"]
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


@FORMATS
def test_a_view_is_read_at_its_offset_in_the_storage(saved: Any, zipped: bool):
    whole = torch.arange(24.0).reshape(4, 6)
    parts = {"a": whole[1:3, ::2], "b": whole.T, "c": whole[3, 5]}
    state = read_pickle(saved(parts, zipped))
    assert all(torch.equal(state[name], value) for name, value in parts.items())
    state["b"][5, 3] = -1
    assert state["c"] == -1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.complex64])
def test_every_usual_dtype_is_read(saved: Any, dtype: torch.dtype):
    value = torch.tensor([0, 1, 1]).to(dtype)
    read = read_pickle(saved({"x": value}))["x"]
    assert read.dtype == dtype
    assert torch.equal(read, value)


class Attack:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def attacks(proof: Path) -> dict[str, Attack]:
    """What leaves the file `proof` when it is run, by the name that the error must give."""
    return {
        f"{os.name}.system": Attack(os.system, f"echo > {proof}"),
        "builtins.eval": Attack(eval, f"open({str(proof)!r}, 'w').close()"),
        "builtins.exec": Attack(exec, f"open({str(proof)!r}, 'w').close()"),
        "io.open": Attack(open, str(proof), "w"),
        "shutil.copy": Attack(shutil.copy, __file__, str(proof)),
    }


def in_a_module(attack: object) -> nn.Module:
    model = nn.Linear(1, 1)
    model.note = {"deep": [attack]}
    return model


PLACES: dict[str, Callable[[object], object]] = {
    "alone": lambda attack: attack,
    "attribute": in_a_module,
    "state dict": lambda attack: {"weight": torch.ones(1), "more": attack},
}


@FORMATS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", attacks(Path()))
def test_an_attack_is_named_and_not_run(
    tmp_path: Path, saved: Any, zipped: bool, place: str, name: str
):
    proof = tmp_path / "proof"
    path = saved(PLACES[place](attacks(proof)[name]), zipped)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: it requests a call of {name}"):
        read_pickle(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so the attack was a real one


def test_what_a_lookup_returns_is_not_called(tmp_path: Path):
    path = tmp_path / "model.pt"
    lookup = b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("get") + b"tR"
    path.write_bytes(legacy_bytes(b"\x80\x02" + lookup + b"(" + text("system") + b"tR."))
    with pytest.raises(ValueError, match="something that is not a named function"):
        read_pickle(path)


def test_foreign_calls_outside_the_standard_library_stay_records(saved: Any, tmp_path: Path):
    proof = tmp_path / "proof"
    model = nn.Linear(1, 1)
    model.note = Attack(np.save, str(proof), np.zeros(3))
    path = saved(model)
    assert torch.equal(read_pickle(path)["weight"], model.weight)
    assert not list(tmp_path.glob("proof*"))


def test_an_import_with_side_effects_does_not_happen(tmp_path: Path, saved: Any):
    path = tmp_path / "model.pt"
    path.write_bytes(legacy_bytes(b"\x80\x02cantigravity_of_somebody\nNet\n)\x81}b."))
    with pytest.raises(
        ValueError, match=r"an object of antigravity_of_somebody\.Net, not a module"
    ):
        read_pickle(path)
    assert "antigravity_of_somebody" not in sys.modules


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "torch.save did not write it"),
        (b"just some text\n", "torch.save did not write it"),
        (pickle.dumps({"weight": [1.0]}), "torch.save did not write it"),
        (b"PK\x03\x04 cut off", "corrupted"),
        (legacy_bytes(b"\x80\x02}."), "a dict without any tensor"),
        (legacy_bytes(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."), "a dict without any tensor"),
        (legacy_bytes(b"\x80\x02]."), "holds a list, not a module"),
        (legacy_bytes(b"\x80\x02ctorch\nnn\n."), "holds the name torch.nn, not a module"),
        (legacy_bytes(b"\x80\x02\x82\x01."), "no pickle opcode EXT1"),
        (legacy_bytes(b"\x80\x02(i__main__\nNet\n."), "no pickle opcode INST"),
        (legacy_bytes(b"\x80\x02h\x05."), "corrupted"),
        (legacy_bytes(b"\x80\x02t."), "corrupted"),
        (legacy_bytes(b"\x80\x020."), "corrupted"),
        (legacy_bytes(b"\x80\x02(0."), "takes more than the stack holds"),
        (legacy_bytes(b"\x80\x02]]s."), "takes more than the stack holds|corrupted"),
        (legacy_bytes(b"\x80\x02](]]u."), "corrupted"),
        (legacy_bytes(b"\x80\x02N.", ("0",)), "corrupted"),
        (legacy_bytes(b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa."), "cannot read"),
    ],
)
def test_what_is_no_pickled_module_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pickle(path)


def test_a_program_and_a_foreign_archive_are_told_apart(tmp_path: Path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript program"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"zip archive, but torch\.save did not write it"):
        read_pickle(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "model.pt")


@FORMATS
def test_a_file_cut_off_anywhere_is_refused(saved: Any, zipped: bool):
    path = saved(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), zipped)
    content = path.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot read"):
            read_pickle(path)


@FORMATS
def test_a_file_with_a_wrong_byte_gives_weights_or_a_value_error(saved: Any, zipped: bool):
    path = saved(nn.Linear(2, 1), zipped)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_pickle(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "count", "message"),
    [
        (0, (2, 4), (4, 1), 6, r"'weight' of size \(2, 4\), .* more than the 6 values"),
        (3, (4,), (1,), 6, "offset 3 needs more than the 6 values"),
        (0, (2,), (7,), 6, "needs more than the 6 values"),
        (0, (10**6, 10**6), (0, 0), 6, "needs more than the 6 values"),
        (0, (2**40, 2**40), (1, 1), 6, "needs more than the 6 values"),
        (-1, (2,), (1,), 6, "must have integers of at least 0"),
        (0, (-2,), (1,), 6, "must have integers of at least 0"),
        (5, (2,), (-1,), 6, "must have integers of at least 0"),
        (0, (True,), (1,), 6, "must have integers of at least 0"),
        (0, (2, 3), (1,), 6, "cannot read"),
        (0, (2,), (2**70,), 6, "needs more"),
        (0, (6,), (1,), 7, "needs 28 bytes, got 24"),
        (0, (6,), (1,), 5, "needs more than the 5 values"),
        (0, (6,), (1,), -6, "must have integers of at least 0"),
    ],
)
def test_sizes_that_do_not_fit_the_stored_bytes_are_refused(
    tmp_path: Path, offset: int, size: Any, stride: Any, count: int, message: str
):
    path = tensor_file(tmp_path / "model.pt", (offset, size, stride), bytes(24), count)
    with pytest.raises(ValueError, match=message):
        read_pickle(path)


def test_a_hand_made_file_with_fitting_sizes_is_read(tmp_path: Path):
    stored = struct.pack("<6f", *range(6))
    path = tensor_file(tmp_path / "model.pt", (1, (2, 2), (3, 1)), stored, 6)
    assert read_pickle(path)["weight"].tolist() == [[1, 2], [4, 5]]


def test_a_module_that_contains_itself_is_refused(saved: Any):
    model = nn.Linear(1, 1)
    path = saved(model)
    model._modules["again"] = model
    path = saved(model)
    with pytest.raises(ValueError, match="contains itself"):
        read_pickle(path)


def test_a_few_modules_that_stand_for_millions_are_refused(saved: Any):
    model: nn.Module = nn.ReLU()
    for _ in range(40):
        model = nn.ModuleList([model, model])
    with pytest.raises(ValueError, match="too many modules"):
        read_pickle(saved(model))


def test_an_entry_that_is_no_tensor_is_named(saved: Any):
    model = nn.Linear(1, 1)
    model._buffers["odd"] = [1]
    with pytest.raises(ValueError, match="'odd' is a list, not a tensor"):
        read_pickle(saved(model))
    model = nn.Linear(1, 1)
    model._modules["odd"] = 3
    with pytest.raises(ValueError, match="'odd' is a int, not a module"):
        read_pickle(saved(model))


RULES = [(r"head\.(.*)", r"first.\1"), (r"num_batches_tracked", None), (r"(first\..*)", r"\1")]


def test_the_first_rule_that_fits_the_whole_name_wins():
    state = {"head.bias": 1, "num_batches_tracked": 2, "first.weight": 3}
    assert rename(state, RULES) == {"first.bias": 1, "first.weight": 3}
    assert "HEAD.BIAS" in rename(state, [(".*", lambda match: match[0].upper())])


def test_names_that_no_rule_fits_are_reported():
    names = [f"odd{i}" for i in range(5)]
    with pytest.raises(ValueError, match=r"unexpected.*'odd0', 'odd1', 'odd2' and 2 more"):
        rename(dict.fromkeys([*names, "head.bias"]), RULES)


def test_two_entries_with_one_new_name_are_refused():
    with pytest.raises(ValueError, match=r"'first\.bias'.*'head\.bias'"):
        rename({"first.bias": 1, "head.bias": 2}, RULES)


def test_missing_and_left_over_names_are_told_apart():
    with pytest.raises(ValueError, match="must have 'b'"):
        check_names(["a", "x"], ["a", "b"])
    with pytest.raises(ValueError, match=r"unexpected.*'x'"):
        check_names(["a", "b", "x"], ["a", "b"])


def test_a_model_is_filled_with_all_entries_or_none():
    layer = nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"bias must have shape \(1,\), got \(2,\)"):
        fill(layer, {"weight": np.ones((1, 2)), "bias": np.ones(2)})
    assert torch.equal(layer.weight, before)
    fill(layer, {"weight": np.ones((1, 2)), "bias": np.zeros(1)})
    assert layer(torch.ones(2)).item() == 2
