"""Networks in low precision, in channels last, in 1-D, and compiled."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain, plain_pyramids
from benchmarks.paired import assert_equal, measure_step, only_in_full, only_when_timing
from neurenix_ms import FeatureFusion, PyramidNetwork, PyramidPooling, UNet

FORMS = ["float32", "bf16", "channels last", "compiled"]
SIZES = {1: 1024, 2: 128, 3: 32}
Maps = Tensor | list[Tensor]
PRODUCTS = {"bf16": torch.bfloat16}  # inputs of matrix products other than the input
CLOSE = 0.1  # relative to the largest value, in bf16


def unet(dims: int) -> tuple[nn.Module, nn.Module, Maps]:
    features, size = (8, 16, 32) if dims == 3 else (32, 64, 128), SIZES[dims]
    ours = UNet(3, 1, features, spatial_dims=dims, remember=False)
    theirs = plain.with_weights_of(ours, plain.UNet(3, 1, features, dims))
    return ours, theirs, torch.randn(1, 3, *(size,) * dims)


def pyramid(dims: int) -> tuple[nn.Module, nn.Module, Maps]:
    base, size = 8 if dims == 3 else 32, SIZES[dims]
    ours = PyramidNetwork(3, 4, base_channels=base, spatial_dims=dims, remember=False)
    theirs = plain_pyramids.PyramidNetwork(3, 4, ours.feature_channels, dims)
    return ours, plain.with_weights_of(ours, theirs), torch.randn(1, 3, *(size,) * dims)


def pooling(dims: int) -> tuple[nn.Module, nn.Module, Maps]:
    channels, size = 16 if dims == 3 else 64, {1: 1024, 2: 64, 3: 24}[dims]
    ours = PyramidPooling(channels, channels, spatial_dims=dims)
    theirs = plain.PyramidPooling(channels, channels, [1, 2, 3, 6], dims)
    return ours, plain.with_weights_of(ours, theirs), torch.randn(2, channels, *(size,) * dims)


def fusion(dims: int) -> tuple[nn.Module, nn.Module, Maps]:
    ours = FeatureFusion([32, 64, 128], 64)
    theirs = plain.with_weights_of(ours, plain.ConcatFusion([32, 64, 128], 64))
    return ours, theirs, [torch.randn(1, 32 * 2**i, 96 // 2**i, 96 // 2**i) for i in range(3)]


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, nn.Module, Maps]]] = {
    "UNet": unet,
    "PyramidNetwork": pyramid,
    "PyramidPooling": pooling,
    "FeatureFusion": fusion,
}
CASES = [
    (name, dims) for name in NETWORKS for dims in (1, 2, 3) if name != "FeatureFusion" or dims == 2
]


def in_form(form: str, model: nn.Module, dims: int) -> nn.Module:
    """Return the module converted to the form."""
    if form == "channels last":
        return model.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    return torch.compile(model) if form == "compiled" else model


def as_input(form: str, x: Maps, dims: int) -> Maps:
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    if form != "channels last":
        return x
    maps = [y.contiguous(memory_format=layout) for y in ([x] if isinstance(x, Tensor) else x)]
    return maps[0] if isinstance(x, Tensor) else maps


def is_slow_in_bf16() -> bool:
    """Return whether convolutions run on a CPU without kernels for bf16: they take minutes there."""
    on_cpu = torch.empty(0).device.type == "cpu"
    return on_cpu and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def prepared(name: str, dims: int, form: str, request: pytest.FixtureRequest, training: bool):
    """Return both implementations in this form, their input, and the context to run them in."""
    if form == "compiled":
        only_in_full(request)  # compiling takes a minute each
    if form == "bf16" and is_slow_in_bf16():
        only_when_timing(request)
    if form == "channels last" and dims == 1:
        pytest.skip("one axis has one order")
    ours, theirs, x = NETWORKS[name](dims)
    ways = {"plain": theirs, "ours": ours}
    ways = {key: in_form(form, way.train(training), dims) for key, way in ways.items()}
    device = torch.empty(0).device.type
    low = partial(torch.autocast, device, torch.bfloat16, enabled=form == "bf16")
    x = as_input(form, x, dims)
    with torch.no_grad(), low():
        wanted, got = ways["plain"](x), ways["ours"](x)
    if form == "bf16":
        assert (wanted - got).abs().max() < CLOSE * wanted.abs().max()
    else:
        assert_equal(got, wanted)
    return ways, x, low


@pytest.mark.benchmark(group="forms/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("block", "dims"), CASES)
def test_forms_forward(block, dims, form, variant, measure, request):
    ways, x, low = prepared(block, dims, form, request, training=False)

    def forward(way: nn.Module) -> None:
        with torch.no_grad(), low():
            way(x)

    calls = {name: partial(forward, way) for name, way in ways.items()}
    first = x if isinstance(x, Tensor) else x[0]
    measure_step(measure, calls, variant, first, ways[variant], dtype=PRODUCTS.get(form))


@pytest.mark.benchmark(group="forms/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("block", "dims"), CASES)
def test_forms_train_step(block, dims, form, variant, measure, request):
    ways, x, low = prepared(block, dims, form, request, training=True)

    def step(way: nn.Module) -> None:
        with low():
            loss = way(x).float().square().mean()
        loss.backward()
        way.zero_grad()

    calls = {name: partial(step, way) for name, way in ways.items()}
    first = x if isinstance(x, Tensor) else x[0]
    measure_step(measure, calls, variant, first, ways[variant], 3, dtype=PRODUCTS.get(form))
