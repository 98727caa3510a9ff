"""Pooling with dilations against torchvision, its definition, and at every size."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import Tensor, nn
from torch.profiler import profile
from torchvision.models.segmentation.deeplabv3 import ASPP

from neurenix_ms import AtrousPyramidPooling, enable_gradient_checkpointing
from neurenix_ms._core.dims import CONVOLVE
from neurenix_ms.execution import TiledModel
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.multiscale.atrous import DilatedConvolution


def scrambled(pool: AtrousPyramidPooling) -> AtrousPyramidPooling:
    with torch.no_grad():
        for value in [*pool.parameters(), *pool.buffers()]:
            if value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value))
    return pool


def torchvisions(ours: AtrousPyramidPooling) -> nn.Module:
    theirs = ASPP(ours.in_channels, ours.dilations, ours.out_channels)
    theirs.project[-1] = nn.Identity()  # a dropout
    values = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    return theirs.train(ours.training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(13, 9), (40, 33), (1, 6)])
def test_values_gradients_and_statistics_are_those_of_torchvision(size, training):
    ours = scrambled(AtrousPyramidPooling(6, 8, (2, 12, 24))).double().train(training)
    theirs = torchvisions(ours).double()
    leaves = [torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)]
    wanted, found = theirs(*leaves), ours(*leaves)
    torch.testing.assert_close(found, wanted)
    seed = torch.randn_like(wanted)
    ours_and_theirs = zip(
        torch.autograd.grad(found, leaves + list(ours.parameters()), seed),
        torch.autograd.grad(wanted, leaves + list(theirs.parameters()), seed),
        strict=True,
    )
    for a, b in ours_and_theirs:
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_of_one_trains_where_torchvision_refuses():
    ours = AtrousPyramidPooling(6, 8, (2,)).train()
    x = torch.randn(1, 6, 9, 7)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torchvisions(copy.deepcopy(ours))(x)
    before = copy.deepcopy(ours.branches[-1].norm.state_dict())
    ours(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    after = ours.branches[-1].norm.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@given(dims_and_sizes(1, 13), st.integers(1, 14), st.booleans())
def test_taps_that_read_padding_alone_may_be_left_out(shape, dilation, separable):
    dims, size = shape
    layer = DilatedConvolution(
        2, 3, (dilation,) * dims, separable=separable, bias=True, spatial_dims=dims
    ).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    dense = layer.conv(x)
    torch.testing.assert_close(layer(x), dense if layer.point is None else layer.point(dense))


@pytest.mark.parametrize(("dims", "channels", "size"), [(2, 64, 32), (3, 12, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_with_much_padding_are_left_out(dims, channels, size, bias):
    layer = DilatedConvolution(
        channels, channels, (20,) * dims, separable=False, bias=bias, spatial_dims=dims
    )
    x = torch.randn(1, channels, *(size,) * dims)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.conv(x), atol=1e-5, rtol=1e-5)
        with profile() as seen:
            layer(x)
    assert "aten::convolution" not in {event.key for event in seen.key_averages()}


def test_a_dilation_per_axis():
    pool = AtrousPyramidPooling(2, 3, [(1, 4)], norm=None, act=None, image_pooling=False).double()
    x = torch.randn(1, 2, 9, 11, dtype=torch.float64)
    first, second = (branch.conv for branch in pool.branches)
    wide = F.conv2d(x, second.conv.weight, second.conv.bias, 1, (1, 4), (1, 4))
    both = torch.cat([first(x), wide], dim=1)
    torch.testing.assert_close(pool(x), F.conv2d(both, pool.project.weight, pool.project.bias))


@given(dims_and_sizes(1, 9), st.sampled_from(["batch", "group", None]), st.booleans())
def test_nothing_is_concatenated_and_the_result_is_the_same(shape, norm, separable):
    dims, size = shape
    pool = AtrousPyramidPooling(
        3, 4, (1, 2), norm=norm, separable=separable, spatial_dims=dims, act="silu"
    )
    pool = scrambled(pool).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    views = torch.cat([branch(x).expand(-1, -1, *size) for branch in pool.branches], dim=1)
    mixed = CONVOLVE[dims](views, pool.project.weight, pool.project.bias)
    torch.testing.assert_close(pool(x), pool.project_act(pool.project_norm(mixed)))


def test_a_third_of_the_memory_of_the_plain_way():
    ours = AtrousPyramidPooling(32, 32, (2, 4, 6)).eval()
    theirs, x = torchvisions(ours), torch.randn(1, 32, 48, 48)
    with torch.no_grad():
        peaks = [peak_tensor_bytes(lambda m=m: m(x)) for m in (ours, theirs)]
    assert peaks[0] <= peaks[1] / 3


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    pool = AtrousPyramidPooling(2, 2, (1, 4), norm="group", act="tanh", spatial_dims=dims)
    x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scrambled(pool).double(), x)


def test_checkpointing_changes_no_gradient_and_needs_less_memory():
    pool, x = AtrousPyramidPooling(16, 16, (2, 4)), torch.randn(2, 16, 40, 40)

    def step(enabled: bool) -> list[Tensor]:
        model = copy.deepcopy(pool)
        with enable_gradient_checkpointing(enabled):
            loss = model(x).square().mean()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    assert all(torch.equal(a, b) for a, b in zip(step(False), step(True), strict=True))
    plain, spared = (peak_tensor_bytes(lambda on=on: step(on)) for on in (False, True))
    assert spared < 0.8 * plain


@pytest.mark.parametrize(("dims", "size", "tile"), [(1, (61,), 16), (2, (37, 29), 14)])
def test_tiles_are_equal_to_the_whole_without_the_image_branch(dims, size, tile):
    pool = AtrousPyramidPooling(2, 3, (2, 3), image_pooling=False, spatial_dims=dims)
    pool = scrambled(pool).double().eval()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        whole, tiled = pool(x), TiledModel(pool, tile, spatial_dims=dims)(x)
    assert (whole - tiled).abs().max() <= 1e-10 * whole.std()


def test_the_image_branch_is_refused_by_name_or_runs_as_a_part():
    pool = scrambled(AtrousPyramidPooling(2, 3, (2,))).double().eval()
    x = torch.randn(1, 2, 48, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"branches\.2.*mean"):
        TiledModel(pool, 16)(x)
    inner = nn.Sequential(nn.MaxPool2d(2), pool, nn.Upsample(scale_factor=2))
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), inner).double()
    with torch.no_grad():
        whole, tiled = model(x), TiledModel(model, 16, whole=("1.1",))(x)
    assert (whole - tiled).abs().max() <= 1e-10 * whole.std()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AtrousPyramidPooling(0, 4), "in_channels must be at least 1, got 0"),
        (lambda: AtrousPyramidPooling(3, 4, []), "number of dilations must be at least 1, got 0"),
        (
            lambda: AtrousPyramidPooling(3, 4, [2, 0]),
            r"dilations\[1\] must be a number of at least",
        ),
        (lambda: AtrousPyramidPooling(3, 4, [(2, 1, 1)]), r"or 2 of them, got \[2, 1, 1\]"),
        (lambda: AtrousPyramidPooling(3, 4, spatial_dims=4), "spatial_dims must be .*, got 4"),
        (lambda: AtrousPyramidPooling(3, 4, dropout=1), "dropout must be at least 0 and below 1"),
        (
            lambda: AtrousPyramidPooling(3, 4)(torch.zeros(1, 4, 8, 8)),
            "must have 3 channels",
        ),
        (lambda: AtrousPyramidPooling(3, 4)(torch.zeros(1, 3, 1, 1)), "more than one pixel"),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
