"""Convolution of single small volumes by oneDNN equals that of torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile

from neurenix_ms._core.convolution import UNFOLDED, Conv3d, _Direct, is_unfolded
from neurenix_ms.execution import TiledModel
from neurenix_ms.meter import count_flops

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
TRIPLES = st.tuples(*[st.integers(1, 3)] * 3)


def kernels(call) -> set[str]:
    """The kernels of torch that a call takes."""
    with profile() as seen:
        call()
    return {event.key for event in seen.key_averages()}


def unfolds(call) -> bool:
    return any("slow_conv" in kernel for kernel in kernels(call))


@needs_onednn
@given(
    size=st.tuples(*[st.integers(0, 7)] * 3),
    channels=st.tuples(st.integers(2, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(*[st.integers(1, 5)] * 3),
    padded=st.tuples(*[st.floats(0, 1)] * 3),
    bias=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_equal_to_torch_with_its_gradients(size, channels, kernel, dilation, padded, bias):
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(round(r * share) for r, share in zip(reach, padded, strict=True))
    # the dilated kernel may be longer than the volume, if padding makes up for it
    size = [max(1, n + r + 2 - 2 * p) for n, r, p in zip(size, reach, padding, strict=True)]
    x, weight, offset = arguments(size, kernel, *channels)
    inputs = [x, weight, offset] if bias else [x, weight]
    offset = offset if bias else None
    wanted = F.conv3d(x, weight, offset, 1, padding, dilation)
    got = directly(x, weight, offset, padding, dilation)
    close(got, wanted)
    seed = torch.randn_like(wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y, inputs, seed) for y in (got, wanted)), strict=True
    ):
        close(ours, theirs)


def arguments(size, kernel, channels_in=2, channels_out=3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, channels_in, *size, requires_grad=True)
    weight = torch.randn(channels_out, channels_in, *kernel, requires_grad=True)
    return x, weight, torch.randn(channels_out, requires_grad=True)


def directly(x, weight, bias, padding=(1, 1, 0), dilation=(1, 1, 2)) -> Tensor:
    return _Direct.apply(x, weight, bias, padding, dilation)


def plainly(x, weight, bias, padding=(1, 1, 0), dilation=(1, 1, 2)) -> Tensor:
    return F.conv3d(x, weight, bias, 1, padding, dilation)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-4)


@needs_onednn
def test_second_derivatives():
    tensors = arguments((5, 6, 7), (3, 3, 2))
    seconds = []
    for way in (directly, plainly):
        firsts = torch.autograd.grad(way(*tensors).pow(3).sum(), tensors, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.pow(2).sum() for g in firsts), tensors))
    for got, wanted in zip(*seconds, strict=True):
        close(got, wanted)


@needs_onednn
def test_derivatives_forward():
    tensors = arguments((5, 6, 7), (3, 3, 2))
    changes = tuple(torch.randn_like(t) for t in tensors)
    got, wanted = (torch.func.jvp(way, tensors, changes) for way in (directly, plainly))
    close(got[0], wanted[0])
    close(got[1], wanted[1])


@needs_onednn
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_functions_over_a_batch():
    x, weight, bias = arguments((5, 6, 7), (3, 3, 2))
    volumes = torch.randn(4, *x.shape)
    wanted = torch.stack([plainly(y, weight, bias) for y in volumes])
    close(torch.func.vmap(directly, in_dims=(0, None, None))(volumes, weight, bias), wanted)

    def loss(way, weight: Tensor, x: Tensor) -> Tensor:
        return way(x, weight, bias).square().sum()

    slope = torch.func.grad(loss, argnums=1)
    per_volume = torch.func.vmap(slope, in_dims=(None, None, 0))
    close(per_volume(directly, weight, volumes), per_volume(plainly, weight, volumes))


def test_operations_are_counted():
    layer, x = Conv3d(8, 16, 3, padding=1), torch.randn(1, 8, 16, 16, 16, requires_grad=True)
    theirs = nn.Conv3d(8, 16, 3, padding=1)
    assert count_flops(lambda: layer(x)) == count_flops(lambda: theirs(x)) > 0
    steps = [lambda way=way: way(x).sum().backward() for way in (layer, theirs)]
    assert count_flops(steps[0]) == count_flops(steps[1])


@needs_onednn
@pytest.mark.parametrize(("channels", "size"), [(8, 32), (16, 17), (64, 8), (3, 40)])
def test_a_small_volume_is_not_unfolded(channels, size):
    layer = Conv3d(channels, 4, 3, padding=1)
    x = torch.randn(1, channels, size, size, size, requires_grad=True)
    assert not unfolds(lambda: layer(x).sum().backward())


@needs_onednn
def test_in_tiles_no_layer_of_others_is_unfolded_either():
    layer = nn.Conv3d(8, 4, 3, padding=1)
    tiled, x = (
        TiledModel(layer, 16, spatial_dims=3),
        torch.randn(1, 8, 48, 32, 32),
    )  # no tile is tiny
    with torch.no_grad():
        assert unfolds(lambda: layer(x[:, :, :18]))  # shape of a tile
        close(tiled(x), layer(x))  # the first call measures the receptive field, on tiny volumes
        assert not unfolds(lambda: tiled(x))


@needs_onednn
def test_torch_still_unfolds_one_small_volume():
    """If this fails, torch has changed its rule: check whether `convolution` is still needed."""
    side = (UNFOLDED // 8) ** 0.5
    layer = nn.Conv3d(8, 4, 3, padding=1)
    small, large = torch.randn(1, 8, int(side), int(side), 8), torch.randn(1, 8, 51, 51, 8)
    assert unfolds(lambda: layer(small))
    assert not unfolds(lambda: layer(large))
    assert is_unfolded(small, layer.weight)
    assert not is_unfolded(large, layer.weight)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "padding_mode": "circular"},
        {"padding": (1, 0, 2), "padding_mode": "replicate"},
        {"padding": (2, 1, 1), "padding_mode": "reflect", "dilation": 2},
        {"padding": "same"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 1, "groups": 2},
        {"padding": 1, "stride": 2, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_drop_in(options, batch):
    theirs = nn.Conv3d(4, 6, 3, **options)
    ours = Conv3d(4, 6, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, 4, 15, 16, 17)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.Conv3d)


def test_the_order_in_memory_is_kept():
    layer, x = Conv3d(8, 8, 3, padding=1), torch.randn(1, 8, 20, 20, 20)
    y = layer(x.contiguous(memory_format=torch.channels_last_3d))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert layer(x).is_contiguous()


@needs_onednn
def test_what_torch_does_well_is_left_to_it():
    weight = torch.zeros(8, 8, 3, 3, 3)
    x = torch.zeros(1, 8, 16, 16, 16)
    assert is_unfolded(x, weight)
    for other in (x.double(), x.bfloat16(), x.expand(2, -1, -1, -1, -1), x[:, :, :4, :4], x[0]):
        assert not is_unfolded(other, weight)
    assert not is_unfolded(x.to("meta"), weight.to("meta"))
    with FakeTensorMode() as fake:
        assert not is_unfolded(fake.from_tensor(x), weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_unfolded(x, weight)
    assert not is_unfolded(x, weight[..., :1, :1, :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_unfolded(x, weight)


def test_a_traced_layer_serves_any_size():
    layer = Conv3d(8, 8, 3, padding=1).eval()
    small, large = torch.randn(1, 8, 16, 16, 16), torch.randn(2, 8, 40, 40, 40)
    traced = torch.jit.trace(layer, small)
    torch.testing.assert_close(traced(large), layer(large))
    sizes = dict.fromkeys(range(2, 5), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(layer, (small,), dynamic_shapes=(sizes,)).module()
    torch.testing.assert_close(exported(large[:1]), layer(large[:1]))


def test_invalid_arguments_raise_as_in_torch():
    layer, plain = Conv3d(8, 8, 3), nn.Conv3d(8, 8, 3)
    for shape in ((1, 4, 16, 32, 32), (1, 8, 2, 1, 4096), (3,), (1, 8, 32, 32)):
        x = torch.zeros(shape)
        with pytest.raises(RuntimeError) as theirs:
            plain(x)
        with pytest.raises(RuntimeError) as ours:
            layer(x)
        assert str(ours.value) == str(theirs.value)
