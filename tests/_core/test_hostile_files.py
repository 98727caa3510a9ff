"""Whatever the bytes are, `load` gives the model or a ValueError, soon and in little memory."""

import gc
import io
import pickle
import random
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
import torch
from patience import is_within
from torch import nn

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet, load, save
from neurenix_ms.meter import peak_tensor_bytes


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.nx"
    save(MultiScaleModel([1.0, 0.5], UNet(1, 1, [4], norm="group"), "mean"), path)
    return path


def changed(path, **entries):
    """The file with some entries of its content replaced."""
    content = torch.load(path, weights_only=True)
    content.update(entries)
    torch.save(content, path)
    return path


def refused(path, words: str, seconds: float = 1.0) -> None:
    gc.freeze()  # what other tests left does not count, and other processes do not
    try:
        start = time.process_time()
        with pytest.raises(ValueError, match=words):
            load(path)
        spent = time.process_time() - start
    finally:
        gc.unfreeze()
    assert is_within(spent, seconds), spent


def flip(path, count: int, seed: int) -> dict[str, int]:
    """How loads of files with one to four flipped bytes end."""
    rng = random.Random(seed)
    whole = path.read_bytes()
    model = load(path)
    names = dict(model.state_dict())
    ends = {"loaded": 0, "refused": 0}
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= rng.randint(1, 255)
        path.write_bytes(damaged)
        try:
            found = load(path)
        except ValueError:
            ends["refused"] += 1
            continue
        ends["loaded"] += 1  # the byte is one of a name or a date that nobody reads
        assert all(torch.equal(names[k], v) for k, v in found.state_dict().items())
    path.write_bytes(whole)
    return ends


def test_flipped_bytes_are_refused_or_do_not_matter(saved):
    ends = flip(saved, 300, seed=0)
    assert ends["refused"] > 150


@pytest.mark.slow
def test_many_flipped_bytes_are_refused_or_do_not_matter(saved):
    assert flip(saved, 2000, seed=1)["refused"] > 1000


def test_files_cut_anywhere_are_refused(saved):
    whole = saved.read_bytes()
    for end in range(0, len(whole), len(whole) // 60):
        saved.write_bytes(whole[:end])
        refused(saved, "must be a file of neurenix_ms.save, got a corrupted or foreign file")


@pytest.mark.parametrize(
    "config",
    [
        {"in_channels": 1, "out_channels": 1, "features": [5000] * 50},
        {"in_channels": 1, "out_channels": 1, "features": [4], "kernel_size": 20001},
        {"in_channels": 10**9, "out_channels": 1, "features": [4]},
        {"in_channels": 2**62, "out_channels": 2**62, "features": [2**62]},
        {"in_channels": 1, "out_channels": 1, "features": [1] * 20_000},
        {"in_channels": 1, "out_channels": 1, "features": [1] * 100_000},
        {"in_channels": 1, "out_channels": 1, "features": [4], "bottleneck_channels": 10**8},
        {"in_channels": 1, "out_channels": 1, "features": [-1]},
        {"in_channels": 1, "out_channels": 1, "features": {"a": 1}},
        {"in_channels": 1, "out_channels": 1, "norm": {"class": "UNet", "config": {}}},
        {"in_channels": 1, "out_channels": 1, "norm": ["instance", {"affine": True}]},
        {"in_channels": "1", "out_channels": 1},
        {"in_channels": 1},
        {"nonsense": 1},
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_memory_is_given(config, tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    changed(path, config=config)
    most = 10 * path.stat().st_size + 2**20

    refused(path, str(path))
    # under the meter torch loads its compiler, which takes a second by itself
    assert peak_tensor_bytes(lambda: refused(path, str(path), seconds=10)) < most


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("PyramidNetwork", {"in_channels": 1, "out_channels": 1, "num_levels": 10**6}),
        ("PyramidNetwork", {"in_channels": 1, "out_channels": 1, "num_levels": 40}),
        ("PyramidFusion", {"in_channels": 1, "num_scales": 10**9}),
        ("BidirectionalFusion", {"in_channels": [1, 1], "out_channels": 1, "repeats": 10**9}),
        ("BidirectionalFusion", {"in_channels": [1, 1], "out_channels": 1, "extra_levels": 10**9}),
        ("BidirectionalFusion", {"in_channels": [1] * 100_000, "out_channels": 1}),
        ("PyramidDownsample", {"num_levels": 2**62}),
        ("GaussianPyramid", {"kernel_size": 10**8 + 1}),
        ("GaussianPyramid", {"kernel_size": 10**8 + 1, "sigma": None}),
        ("GaussianPyramid", {"kernel_size": 2**61 + 1}),
        ("AtrousPyramidPooling", {"in_channels": 1, "out_channels": 1, "dilations": [1] * 100_000}),
        ("SpectralMixing", {"in_channels": 1, "out_channels": 1, "modes": 10**5}),
        ("SpectralMixing", {"in_channels": 1, "out_channels": 1, "modes": 10**18}),
        ("SpatialPyramidPooling", {"num_levels": 10**9}),
        ("SpatialPyramidPooling", {"bins": [1] * 100_000}),
        ("MultiScalePooling", {"pool_sizes": [5] * 100_000}),
        ("MultiScaleModel", {"scales": [0.5] * 100_000, "share_weights": False}),
        ("MSNet", {"num_scales": 10**6}),
        ("MSNet", {"num_layers": 10**8}),
        ("MSNet", {"num_scales": 100, "filter_growth": 10**6}),
        ("MLP", {"in_features": 1, "out_features": 1, "hidden": [10**5, 10**5]}),
        ("NIF", {"parameter_dim": 1, "coordinate_dim": 1, "shape_width": 10**4}),
        ("NIF", {"parameter_dim": 1, "coordinate_dim": 1, "shape_depth": 10**9}),
        ("LastLayerNIF", {"parameter_dim": 1, "coordinate_dim": 1, "parameter_depth": 10**9}),
        ("EchoStateNetwork", {"num_features": 1, "hidden_size": 10**5}),
        ("ClockworkRNN", {"num_features": 1, "hidden_size": 10**5, "num_groups": 10**5}),
        ("LSTMForecaster", {"num_features": 10**9, "hidden_size": 10**9}),
        ("FourierLatents", {"channels": 1, "size": [10**5], "modes": [50_000]}),
        ("FourierLatents", {"channels": 1, "size": [10**18], "modes": [10**17]}),
        ("LinearLatents", {"num_inputs": 10**6, "num_features": [10**6]}),
        ("StandardizedNetwork", {"network": None, "mean": [], "std": [], "scale": []}),
        ("HierarchicalTimeStepper", {"steppers": [None] * 1000}),
        ("Backbone", {"network": "torchvision/vit_h_14", "weights": "DEFAULT"}),
        ("Backbone", {"network": "hf-hub:someone/something"}),
        ("MS_Net", {"num_scales": 10**6}),
    ],
)
def test_a_huge_model_of_any_class_is_refused_soon(name, config, tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    changed(path, **{"class": name, "config": config})

    refused(path, str(path), seconds=3.0)  # it may have to import the part
    assert peak_tensor_bytes(lambda: refused(path, str(path), seconds=10)) < 2**27


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def freed(value: list[Any]) -> None:
    while value:
        value = value.pop()


def cyclic() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def shared() -> list[Any]:
    value: list[Any] = [1]
    for _ in range(30):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (cyclic(), "config must have at most 32 levels"),
        ({"features": cyclic()}, "config must have at most 32 levels"),
        ({"features": shared()}, "config must have at most 32 levels"),
        ({1: 2}, "config must have strings as keys, got 1"),
        ({None: 2, "a": 1}, "config must have strings as keys, got None"),
        ({"norm": {3: 4}}, "config.norm must have strings as keys, got 3"),
        ({"features": {"class": 3, "config": {}}}, "describe a model by its class and config"),
        ({"features": {"class": "UNet"}}, "describe a model by its class and config"),
        ({"features": {"class": "UNet", "config": None}}, "pass it as model="),
        ({"features": torch.zeros(2)}, r"config\.features must be a plain number"),
        ({"features": [OrderedDict]}, "corrupted or foreign file|must be a plain number"),
        ({"features": b"48"}, r"config\.features must be a plain number"),
        ({"features": {4, 8}}, r"config\.features must be a plain number"),
        ("text", "config must be a dict or None, got 'text'"),
        ([1, 2], "config must be a dict or None"),
        (3.5, "config must be a dict or None"),
    ],
)
def test_a_strange_config_is_refused_by_its_entry(config, words, saved):
    refused(changed(saved, config=config), words)


def test_a_config_of_a_hundred_thousand_levels_is_refused(saved):
    sys.setrecursionlimit(10**6)
    try:
        content = torch.load(saved, weights_only=True)
    finally:
        sys.setrecursionlimit(1000)
    content["config"] = "HERE"
    torch.save(content, saved)
    deep = b"]" * 100_000 + b"a" * 99_999  # EMPTY_LIST, then APPEND
    rewrite(saved, lambda pickled: replaced_text(pickled, "HERE", deep))
    refused(saved, "config must have at most 32 levels")


def replaced_text(pickled: bytes, text: str, by: bytes) -> bytes:
    """A pickle in which one string, and the note of it, is replaced by other opcodes."""
    start = pickled.index(b"X" + struct.pack("<I", len(text)) + text.encode())
    return pickled[:start] + by + pickled[start + 5 + len(text) :]


def rewrite(path, change, **options: Any) -> None:
    """The archive with another pickle in it."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_a_compressed_archive_is_refused_without_unpacking_it(tmp_path):
    path = tmp_path / "bomb.nx"
    save(nn.Linear(2, 2), path)
    with zipfile.ZipFile(path) as archive:
        pickled = (
            archive.read("archive/data.pkl") if "archive/data.pkl" in archive.namelist() else b""
        )
        names = archive.namelist()
        records = {name: archive.read(name) for name in names}
    assert pickled or any(name.endswith("/data.pkl") for name in names)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, bytes(2**28) if name.endswith("data/0") else content)
    assert path.stat().st_size < 2**20

    refused(path, str(path))
    assert peak_tensor_bytes(lambda: refused(path, str(path), seconds=10)) < 2**20


def test_a_storage_that_is_shorter_than_it_says_is_refused(tmp_path):
    path = tmp_path / "m.nx"
    save(nn.Linear(10, 10), path)
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match="the storage of 'weight' needs 400 bytes, got 8"):
        load(path, model=nn.Linear(10, 10))


def test_entries_that_share_a_small_storage_a_thousand_times_are_refused(tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    one = torch.zeros(10_000)
    refused(
        changed(path, state_dict={f"entry{i}": one for i in range(1000)}), "does not hold a model"
    )
    expanded = torch.zeros(1).expand(10**6)
    refused(changed(path, state_dict={"entry": expanded}), "needs more than the 1 values")


@pytest.mark.parametrize(
    "entry",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
        1,
        "text",
        [torch.zeros(1)],
        {"a": torch.zeros(1)},
        None,
    ],
    ids=lambda entry: str(getattr(entry, "layout", type(entry).__name__)),
)
def test_an_entry_that_is_no_dense_tensor_is_refused(entry, saved):
    refused(
        changed(saved, state_dict={"strange": entry}), "does not hold a model|corrupted or foreign"
    )


@pytest.mark.parametrize("name", [3, None, b"a", ("a",), 2.5, True])
def test_names_that_are_no_strings_are_refused(name, saved):
    refused(changed(saved, **{"class": name}), "must hold a class name and a state dict")
    save(UNet(1, 1, [4]), saved)
    refused(changed(saved, state_dict={name: torch.zeros(1)}), "short strings as keys")
    save(UNet(1, 1, [4]), saved)
    content = torch.load(saved, weights_only=True)
    torch.save({**content, name: 1}, saved)
    refused(saved, r"must hold \['class', .*\] only, got")


def test_other_types_of_numbers_do_not_fit(tmp_path):
    path = tmp_path / "m.nx"
    model = UNet(1, 1, [4])
    save(model, path)
    state = dict(model.state_dict())
    first = next(iter(state))
    changed(path, state_dict={**state, first: state[first].to(torch.complex64)})
    refused(path, f"dtype mismatch .*{first} torch.complex64 instead of torch.float32")
    with pytest.raises(ValueError, match="dtype mismatch"):
        load(path, model=UNet(1, 1, [4]))


class Planted:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("place", ["config", "state_dict", "class", "format", "version"])
def test_code_in_any_entry_is_not_run(place, saved, tmp_path):
    marker = tmp_path / "run"
    content = torch.load(saved, weights_only=True)
    content[place] = Planted(marker)
    with zipfile.ZipFile(saved) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        pickled = next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    with zipfile.ZipFile(saved, "w") as archive:
        for name, old in records.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else old)
    refused(saved, "m.nx")
    assert not marker.exists()
    saved.write_bytes(pickle.dumps(content["class"]))
    refused(saved, "got a corrupted or foreign file")


def test_what_a_file_sets_on_the_state_dict_is_refused(saved):
    content = torch.load(saved, weights_only=True)
    content["state_dict"] = OrderedDict(content["state_dict"])
    content["state_dict"]._metadata = [1, 2]
    torch.save(content, saved)
    refused(saved, "state_dict must have versions of layers only, got")


def test_a_network_that_is_larger_than_usual_still_loads(tmp_path):
    for model in (
        PyramidNetwork(1, 1, 5, 4),
        UNet(1, 1, [2] * 8),
        MultiScaleModel([1.0] * 8, UNet(1, 1, [1]), share_weights=False),
    ):
        save(model, tmp_path / "m.nx")
        assert load(tmp_path / "m.nx").config.keys() == model.config.keys()
