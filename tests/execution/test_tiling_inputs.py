"""What tiled calls take and refuse: arrays, tensors, compiled models and arguments of every kind."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients, footprint
from neurenix_ms.execution.compiled import plain_module
from neurenix_ms.execution.run.setting import settle

SIZES = pytest.mark.parametrize("size", [(40, 36), (12, 12)], ids=["tiles", "one tile"])


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))


def values(size: tuple[int, ...], channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (1, channels, *size)).astype("float64")


INPUTS = {
    "float64": lambda x: x,
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian integers": lambda x: x.astype(">i2"),
    "unsigned": lambda x: x.astype("uint16"),
    "unsigned, 64 bits": lambda x: x.astype("uint64"),
    "half": lambda x: x.astype("float16"),
    "long double": lambda x: x.astype(np.longdouble),
    "booleans": lambda x: x > 50,
    "negative strides": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "masked without a mask": lambda x: np.ma.masked_array(x),
    "tensor": torch.from_numpy,
    "tensor of integers": lambda x: torch.from_numpy(x).to(torch.uint8),
    "tensor of booleans": lambda x: torch.from_numpy(x > 50),
    "tensor in half precision": lambda x: torch.from_numpy(x).bfloat16(),
    "view": lambda x: torch.from_numpy(x.swapaxes(2, 3).copy()).transpose(2, 3),
}


def dask_array(x: np.ndarray):
    return pytest.importorskip("dask.array").from_array(x, chunks=7)


@SIZES
@pytest.mark.parametrize("name", [*INPUTS, "dask"])
def test_inputs_of_every_kind_are_converted_to_the_type_of_the_model(name, size):
    model = network().eval()
    x = (dask_array if name == "dask" else INPUTS[name])(values(size))
    plain = x if isinstance(x, Tensor) else torch.tensor(np.array(x, dtype="float64"))
    got = TiledModel(model, 16)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, model(plain.float()))


@SIZES
@pytest.mark.parametrize("name", [*INPUTS, "dask"])
def test_targets_of_every_kind_are_converted(name, size):
    model = network()
    x = torch.randn(1, 1, *size)
    target = (dask_array if name == "dask" else INPUTS[name])(values(size, 2))
    plain = target if isinstance(target, Tensor) else torch.tensor(np.array(target, "float64"))

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (y - t.to(y.dtype)).abs().mean()

    got = accumulate_gradients(model, x, target, loss, 16)
    torch.testing.assert_close(got, loss(model(x), plain.float()).detach())


@SIZES
@pytest.mark.parametrize("kind", [">i2", "uint8", "uint64", "int64"])
def test_labels_of_every_kind_are_labels(kind, size):
    model, x = network(), torch.randn(1, 1, *size)
    labels = np.random.default_rng(0).integers(0, 2, (1, *size)).astype(kind)
    wanted = F.cross_entropy(model(x), torch.tensor(labels.astype("int64")))
    torch.testing.assert_close(
        accumulate_gradients(model, x, labels, F.cross_entropy, 16), wanted.detach()
    )


@SIZES
def test_a_mask_of_booleans_stays_one(size):
    model, x = network(), torch.randn(1, 1, *size)
    mask = np.random.default_rng(0).random((1, 2, *size)) < 0.5

    def loss(y: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.bool
        return y[t].sum()

    got = accumulate_gradients(model, x, mask, loss, 16)
    torch.testing.assert_close(got, loss(model(x), torch.tensor(mask)).detach())


def test_a_model_without_parameters_keeps_the_type_of_its_input():
    model, x = nn.AvgPool2d(3, 1, 1), values((40, 36))
    for one in (x, torch.from_numpy(x)):
        assert TiledModel(model, 16)(one).dtype == torch.float64
    assert TiledModel(model, 16)(torch.from_numpy(x).int()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_complex_model_takes_real_and_complex_inputs():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 5, padding=2))
    model = model.to(torch.complex128)
    x = torch.randn(1, 1, 30, 26, dtype=torch.complex128)
    for one in (x, x.real, x.numpy(), x.real.numpy()):
        wanted = model(torch.as_tensor(one).to(torch.complex128))
        got = TiledModel(model, 8)(one)
        assert (got - wanted).abs().max() < 1e-12
    assert footprint(model, 1).halo == ((3, 3), (3, 3))


REFUSED = {
    "complex": (values((40, 36)) + 1j, r"must be real, .*complex.*got type complex128"),
    "complex tensor": (torch.zeros(1, 1, 40, 36) + 1j, r"must be real, .*got type torch.complex64"),
    "masked": (
        np.ma.masked_greater(values((40, 36)), 98),
        r"must have a value everywhere, got an array with \d+ masked values; fill them",
    ),
    "strings": (values((40, 36)).astype("U3"), r"must hold numbers or booleans, got an array"),
    "objects": (values((40, 36)).astype(object), r"must hold numbers .* and type object"),
    "dates": (values((40, 36)).astype("M8[D]"), r"must hold numbers or booleans"),
    "a list": (
        values((40, 36)).tolist(),
        r"must be a tensor or an array that can be sliced, got list; convert it by torch.as_tensor",
    ),
    "a string": ("scan.npy", r"must be a tensor or an array that can be sliced, got str"),
    "None": (None, r"must be a tensor or an array that can be sliced, got NoneType"),
    "sparse": (torch.zeros(1, 1, 40, 36).to_sparse(), r"must be a dense tensor, got .*sparse_coo"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_would_lose_something_are_refused(name):
    x, words = REFUSED[name]
    with pytest.raises(ValueError, match=f"x {words}"):
        TiledModel(network(), 16)(x)
    with pytest.raises(ValueError, match=f"x {words}"):
        accumulate_gradients(network(), x, torch.zeros(1, 2, 40, 36), F.mse_loss, 16)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_tensor_is_refused():
    x = torch.quantize_per_tensor(torch.zeros(1, 1, 40, 36), 0.1, 0, torch.quint8)
    with pytest.raises(ValueError, match="x must be a dense tensor, got one that is quantized"):
        TiledModel(network(), 16)(x)


@pytest.mark.parametrize("name", ["complex", "complex tensor", "masked", "strings", "objects"])
def test_targets_that_would_lose_something_are_refused(name):
    target, words = REFUSED[name]
    with pytest.raises(ValueError, match=f"target {words}"):
        accumulate_gradients(network(), torch.zeros(1, 1, 40, 36), target, F.mse_loss, 16)


def test_a_lazy_array_that_turns_out_to_be_masked_is_refused():
    lazy = dask_array(np.ma.masked_greater(values((40, 36)), 98))
    with pytest.raises(ValueError, match="masked values"):
        TiledModel(network(), 16)(lazy)


OUTPUTS = {
    "float64": lambda shape: np.zeros(shape),
    "big-endian": lambda shape: np.zeros(shape, ">f4"),
    "half": lambda shape: np.zeros(shape, "float16"),
    "negative strides": lambda shape: np.zeros(shape)[..., ::-1, ::-1],
    "complex": lambda shape: np.zeros(shape, "complex64"),
    "tensor": torch.zeros,
    "tensor of float64": lambda shape: torch.zeros(shape, dtype=torch.float64),
    "view": lambda shape: torch.zeros(*shape[:2], *shape[:1:-1]).transpose(2, 3),
}


@SIZES
@pytest.mark.parametrize("name", OUTPUTS)
def test_results_go_into_arrays_of_every_kind(name, size):
    model, x = network(), torch.randn(1, 1, *size)
    out = OUTPUTS[name]((1, 2, *size))
    assert TiledModel(model, 16)(x, out) is out
    wanted = model(x).detach().numpy()
    assert np.allclose(np.asarray(out), wanted, atol=2e-3)


NO_OUTPUTS = {
    "integers": (
        lambda s: np.zeros(s, int),
        r"out must have a floating point type, .* got type int",
    ),
    "integer tensor": (lambda s: torch.zeros(s, dtype=torch.uint8), r"got type torch.uint8"),
    "strings": (lambda s: np.zeros(s, "U5"), r"out must hold numbers or booleans"),
    "objects": (lambda s: np.zeros(s, object), r"out must hold numbers or booleans"),
    "masked": (lambda s: np.ma.zeros(s), r"out must be an array without a mask"),
    "read-only": (lambda s: np.broadcast_to(0.0, s), r"out must be writable"),
    "expanded": (lambda s: torch.zeros(1, 1, 1, 1).expand(s), r"out must have memory for every"),
}


@SIZES
@pytest.mark.parametrize("name", NO_OUTPUTS)
def test_results_that_would_lose_something_are_refused(name, size):
    make, words = NO_OUTPUTS[name]
    with pytest.raises(ValueError, match=words):
        TiledModel(network(), 16)(torch.zeros(1, 1, *size), make((1, 2, *size)))


@SIZES
def test_labels_go_into_arrays_that_can_hold_them(size):
    model, x = nn.Conv2d(1, 300, 1), torch.randn(1, 1, *size)
    tiled, wanted = TiledModel(model, 16, reduce="argmax"), model(x).argmax(1)
    for kind in ("int16", ">u2", "float32", "float16"):
        out = np.zeros((1, *size), kind)
        tiled(x, out)
        assert np.array_equal(out, wanted.numpy())
    for kind, most in (("uint8", 255), ("int8", 127), ("bool", 1)):
        words = f"out must be able to hold labels up to 299, got type {kind}, whose largest "
        words += f"value is {most}"
        with pytest.raises(ValueError, match=words):
            tiled(x, np.zeros((1, *size), kind))


def test_a_result_in_the_memory_of_the_input_is_refused():
    model = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.randn(1, 1, 40, 36)
    array, words = x.numpy(), "out must not share memory with x"
    for one, out in ((x, x), (array, array), (x, array), (array[..., ::-1], array)):
        with pytest.raises(ValueError, match=words):
            TiledModel(model, 16)(one, out)
    both = np.zeros((2, 1, 40, 36), "float32")  # beside each other in one memory
    TiledModel(model, 16)(both[:1], both[1:])


class Subtracts(nn.Module):
    """Writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(1)
        return self.conv(x)


IN_PLACE = {
    "relu": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3, padding=1)),
    "sub": Subtracts,
    "data": lambda: nn.Sequential(nn.Identity(), Subtracts()),
}


@SIZES
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", ["tensor", "shared", "array"])
def test_a_network_that_works_in_place_leaves_the_input_as_it_is(name, kind, size):
    model = IN_PLACE[name]()
    array = values(size).astype("float32") - 50
    x = {"tensor": torch.tensor, "shared": torch.from_numpy, "array": np.copy}[kind](array)
    wanted = model(torch.tensor(array))
    with torch.inference_mode():
        torch.testing.assert_close(TiledModel(model, 16)(x), wanted.detach())
    torch.testing.assert_close(TiledModel(model, 16)(x), wanted.detach())
    target = torch.zeros(1, 2, *size)
    value = accumulate_gradients(model, x, target, F.mse_loss, 16)
    torch.testing.assert_close(value, F.mse_loss(wanted, target).detach())
    assert np.array_equal(np.asarray(x), values(size).astype("float32") - 50)


def test_a_network_that_does_not_write_gets_no_copy():
    seen = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch._C._is_cow_tensor(x))  # type: ignore[attr-defined]
            return x + 1

    TiledModel(Looks(), 64)(torch.zeros(1, 1, 32, 32))
    assert seen == [True]  # shared until it is written to


@SIZES
def test_a_loss_that_works_in_place_leaves_the_target_as_it_is(size):
    model, x, target = network(), torch.randn(1, 1, *size), torch.randn(1, 2, *size)
    before = target.clone()

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (y - t.mul_(2)).square().mean()

    value = accumulate_gradients(model, x, target, loss, 16)
    assert torch.equal(target, before)
    torch.testing.assert_close(value, loss(model(x), before.clone()).detach())


def compiled_by_call(model: nn.Module, backend) -> nn.Module:
    return torch.compile(model, backend=backend)


def compiled_in_place(model: nn.Module, backend) -> nn.Module:
    model.compile(backend=backend)
    return model


def compiled_inside(model: nn.Module, backend) -> nn.Module:
    model[0] = torch.compile(model[0], backend=backend)
    return model


@pytest.mark.parametrize("compiled", [compiled_by_call, compiled_in_place, compiled_inside])
def test_a_compiled_model_runs_as_the_plain_one(compiled):
    count = []

    def backend(graph, inputs):
        count.append(1)
        return graph.forward

    torch._dynamo.reset()
    plain = network()
    x, target = torch.randn(1, 1, 70, 50), torch.randn(1, 2, 70, 50)
    compiled(copy.deepcopy(plain), backend)(x)
    by_itself = len(count)  # some versions of torch do not compile a module in place
    torch._dynamo.reset()
    count.clear()
    model = compiled(copy.deepcopy(plain), backend)
    wanted = plain(x)
    torch.testing.assert_close(TiledModel(model, 16)(x), wanted.detach())
    torch.testing.assert_close(TiledModel(model, 100)(x), wanted.detach())
    assert footprint(model, 1) == footprint(plain, 1)
    accumulate_gradients(model, x, target, F.mse_loss, 16)
    F.mse_loss(wanted, target).backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert not count
    model(x)  # and stays compiled
    assert len(count) == by_itself


def test_parts_of_a_compiled_model_have_the_names_of_the_plain_one():
    plain = UNet(1, 1, features=[4, 8], norm=None).eval()
    model = torch.compile(plain, backend="eager")
    assert plain_module(model) is plain
    x = torch.randn(1, 1, 40, 36)
    got = TiledModel(model, 16, whole=("level.inner",))(x)
    torch.testing.assert_close(got, plain(x), rtol=1e-4, atol=1e-5)


GOOD_SIZES = [np.int64(8), np.uint8(8), torch.tensor(8), (np.int32(8), 8), np.array([8, 16])]


@pytest.mark.parametrize("tile_size", GOOD_SIZES, ids=repr)
def test_sizes_of_every_integer_type(tile_size):
    model, x = network().eval(), torch.randn(1, 1, 40, 36)
    tiled = TiledModel(model, tile_size, in_channels=np.int64(1), memory_limit=np.int64(10**8))
    torch.testing.assert_close(tiled(x), model(x))


WRONG = [
    ({"tile_size": 8.0}, r"tile_size must be .*integer.*, got 8.0"),
    ({"tile_size": True}, r"tile_size must be .*integer.*, got True"),
    ({"tile_size": None}, r"tile_size must be .*integer.*, got None"),
    ({"tile_size": "8"}, r"tile_size must be .*integer.*, got '8'"),
    ({"tile_size": (8, 2.5)}, r"tile_size\[1\] must be an integer, got 2.5"),
    ({"tile_size": {8}}, r"tile_size must be .*integer.*, got \{8\}"),
    ({"tile_size": ()}, r"tile_size must be at least 1 along each of 2 axes, got \(\)"),
    ({"model": 3}, r"model must be a torch.nn.Module, got 3"),
    ({"model": nn.Conv2d}, r"model must be a torch.nn.Module, got <class"),
    ({"model": None}, r"model must be a torch.nn.Module, got None"),
    ({"spatial_dims": "2"}, r"spatial_dims must be one of \[1, 2, 3\], got '2'"),
    ({"spatial_dims": [2]}, r"spatial_dims must be one of \[1, 2, 3\], got \[2\]"),
    ({"in_channels": 1.5}, r"in_channels must be an integer or None, got 1.5"),
    ({"in_channels": 0}, r"in_channels must be at least 1, got 0"),
    ({"whole": 3}, r"whole must be a sequence of names of submodules, got 3"),
    ({"whole": [3]}, r"whole\[0\] must be a string, got 3"),
    ({"whole": None}, r"whole must be a sequence of names of submodules, got None"),
    ({"whole": ("0", "9")}, r"submodules of Sequential .* got '9'"),
    ({"memory_limit": "1GB"}, r"memory_limit must be an integer or None, got '1GB'"),
    ({"memory_limit": 1e9}, r"memory_limit must be an integer or None, got 1000000000.0"),
    ({"memory_limit": True}, r"memory_limit must be an integer or None, got True"),
    ({"reduce": ["argmax"]}, r"reduce must be one of \['argmax'\] or None, got \['argmax'\]"),
    ({"progress": "yes"}, r"progress must be True or False, got 'yes'"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_arguments_of_a_wrong_type_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        TiledModel(**({"model": network(), "tile_size": 8} | options))


WRONG_GRADIENTS = [
    ({"model": [1]}, r"model must be a torch.nn.Module, got \[1\]"),
    ({"loss": "mse"}, r"loss must be callable, got 'mse'"),
    ({"tile_size": 8.5}, r"tile_size must be .*integer.*, got 8.5"),
    ({"tile_size": "auto"}, r"'auto' together with memory_limit"),
    ({"whole": {"a": 1}}, r"whole must be a sequence of names of submodules, got \{'a': 1\}"),
    ({"reduction": 1}, r"reduction must be one of \['mean', 'sum'\] or None, got 1"),
    ({"x": torch.zeros(40)}, r"\(B, C\) and one to three spatial axes, .* got \(40,\)"),
]


@pytest.mark.parametrize(("options", "words"), WRONG_GRADIENTS)
def test_arguments_of_gradients_of_a_wrong_type_are_refused_by_name(options, words):
    x, target = torch.zeros(1, 1, 40, 36), torch.zeros(1, 2, 40, 36)
    given = {"model": network(), "x": x, "target": target, "loss": F.mse_loss, "tile_size": 8}
    with pytest.raises(ValueError, match=words):
        accumulate_gradients(**(given | options))


def test_arguments_of_a_footprint_of_a_wrong_type_are_refused_by_name():
    for given, words in (
        (([], 1), r"model must be a torch.nn.Module, got \[\]"),
        ((network(), "1"), r"in_channels must be an integer, got '1'"),
        ((network(), 1, 2.5), r"spatial_dims must be one of \[1, 2, 3\], got 2.5"),
        ((nn.LazyConv2d(1, 3), 1), r"must have its parameters .* got LazyConv2d"),
    ):
        with pytest.raises(ValueError, match=words):
            footprint(*given)


def test_a_network_of_volumes_is_tried_before_there_is_a_map():
    model = nn.Conv3d(3, 1, 3, stride=2)
    TiledModel(model, 8, spatial_dims=3, in_channels=3)
    refused = nn.Sequential(model, nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match=r"got '1' \(Conv3d\)"):
        TiledModel(refused, 8, spatial_dims=3, in_channels=3)


def test_many_tiles_are_not_counted_to_find_the_largest():
    model = nn.Conv3d(1, 1, 3, padding=1)
    setting = settle(model, (1, 1, 4096, 4096, 4096), torch.empty(0), 2, "auto", None)
    assert math.prod(b - a for a, b in setting.grid.largest(setting.plan.output_halo())) == 4**3
    assert len(setting.grid) == 2048**3
