"""Pooling blocks against torch, the installed libraries and their definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes

from neurenix_ms import MultiScalePooling, PyramidPooling, SpatialPyramidPooling
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.folding import FoldedConvolution

AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def by_hand(x, k, how):
    """One window after the other, only over real pixels."""
    before, after = (k - 1) // 2, k // 2
    out = torch.empty_like(x)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[2:])).view(-1, x.ndim - 2):
        window = tuple(slice(max(0, int(i) - before), int(i) + after + 1) for i in index)
        pixels = x[(slice(None), slice(None), *window)].flatten(2)
        value = pixels.amax(2) if how == "max" else pixels.mean(2)
        out[(slice(None), slice(None), *index.tolist())] = value
    return out


@given(dims_and_sizes(1, 6), st.integers(1, 7), st.sampled_from(["avg", "max"]))
def test_a_window_excludes_padding(shape, k, how):
    dims, size = shape
    x = torch.randn(2, 2, *size, dtype=torch.float64) - 3  # below zero: padding must never win
    pool = MultiScalePooling([k], how, spatial_dims=dims)
    torch.testing.assert_close(pool(x), by_hand(x, k, how))


@given(dims_and_sizes(1, 14), st.sampled_from([1, 3, 5, 9]))
def test_odd_windows_are_those_of_torch(shape, k):
    dims, size = shape
    x = torch.randn(1, 3, *size)
    assert torch.equal(
        MultiScalePooling([k], "max", spatial_dims=dims)(x), MAX[dims](x, k, 1, k // 2)
    )
    average = MultiScalePooling([k], spatial_dims=dims)(x)
    if dims < 3 or min(size) >= k:  # torch itself raises for smaller 3-D feature maps
        torch.testing.assert_close(average, AVG[dims](x, k, 1, k // 2, count_include_pad=False))


def test_the_first_window_of_one_is_the_input():
    x = torch.randn(1, 3, 5, 7)
    out = MultiScalePooling()(x)
    assert out.shape == (1, 12, 5, 7)
    assert torch.equal(out[:, :3], x)


@given(dims_and_sizes(1, 9), st.sampled_from(["avg", "max"]))
def test_a_constant_stays_constant(shape, how):
    dims, size = shape
    x = torch.full((1, 2, *size), 1.5)
    assert torch.allclose(MultiScalePooling(pool_type=how, spatial_dims=dims)(x), x[:, :1])


@given(dims_and_sizes(1, 9), st.sampled_from(["avg", "max"]))
def test_every_bin_is_that_of_adaptive_pooling(shape, how):
    dims, size = shape
    x = torch.randn(2, 3, *size)
    adaptive = getattr(F, f"adaptive_{how}_pool{dims}d")
    expected = torch.cat([adaptive(x, n).flatten(1) for n in (1, 2, 4)], 1)
    pool = SpatialPyramidPooling(3, how, spatial_dims=dims)
    assert torch.equal(pool(x), expected)
    assert pool.output_length(3) == expected.shape[1] == 3 * {1: 7, 2: 21, 3: 73}[dims]


def test_other_bins_take_the_place_of_the_levels():
    pool = SpatialPyramidPooling(bins=[6, 3, 2, 1])
    assert pool(torch.zeros(1, 2, 9, 9)).shape == (1, 2 * (36 + 9 + 4 + 1))
    assert pool.num_levels == 4


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_of_the_poolings_are_right(dims):
    x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    for how in ("avg", "max"):
        assert torch.autograd.gradcheck(
            MultiScalePooling([2, 3], how, spatial_dims=dims).double(), x
        )
        assert torch.autograd.gradcheck(
            SpatialPyramidPooling(2, how, spatial_dims=dims).double(), x
        )
    pyramid = PyramidPooling(2, 3, [1, 2], spatial_dims=dims, act="tanh").double().eval()
    assert torch.autograd.gradcheck(pyramid, x)


@given(dims_and_sizes(1, 9))
def test_pyramid_pooling_keeps_the_size(shape):
    dims, size = shape
    x = torch.randn(2, 8, *size)
    assert PyramidPooling(8, 5, spatial_dims=dims).eval()(x).shape == (2, 5, *size)
    bare = PyramidPooling(8, 5, [1, 3], spatial_dims=dims, project=False).eval()
    y = bare(x)
    assert y.shape == (2, 8 + 2 * 5, *size)
    assert torch.equal(y[:, :8], x)


@given(dims_and_sizes(1, 9), st.sampled_from(["nearest", "bilinear", "area"]), st.booleans())
def test_a_folded_convolution_equals_that_of_the_concatenated_feature_map(
    shape, mode, align_corners
):
    dims, size = shape
    resize = Resize(mode, dims, align_corners)
    fold = FoldedConvolution(3, 2, [1, 3, 4], 5, resize, dims, bias=True).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    grids = [torch.randn(2, 2, *(n,) * dims, dtype=torch.float64) for n in fold.bins]
    torch.testing.assert_close(fold.folded(x, grids), fold(x, grids), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_of_a_folded_convolution_are_right(dims):
    fold = FoldedConvolution(2, 1, [1, 2], 2, Resize("linear", dims), dims, bias=True).double()
    maps = [
        torch.randn(1, 2, *(4, 3, 5)[:dims]),
        *(torch.randn(1, 1, *(n,) * dims) for n in [1, 2]),
    ]
    inputs = [x.double().requires_grad_() for x in maps]

    def call(x, *grids_and_weights):
        names = dict(zip(("weight", "bias"), grids_and_weights[2:], strict=True))
        arguments = (x, list(grids_and_weights[:2]))
        with torch.nn.utils.stateless._reparametrize_module(fold, names):
            return fold.folded(*arguments)

    assert torch.autograd.gradcheck(call, (*inputs, fold.weight, fold.bias))


def test_large_feature_maps_are_folded_and_small_ones_are_not(monkeypatch):
    pool = PyramidPooling(64, 64).eval()
    calls = []
    folded = pool.projection.conv.folded
    monkeypatch.setattr(pool.projection.conv, "folded", lambda *a: calls.append(1) or folded(*a))
    with torch.no_grad():
        pool(torch.zeros(1, 64, 16, 16))
        assert not calls
        pool(torch.zeros(1, 64, 48, 48))
    assert calls


def test_the_branch_of_one_bin_has_a_bias_and_no_norm():
    pool = PyramidPooling(8, 8)
    assert pool.branches[0][1].conv.bias is not None
    assert isinstance(pool.branches[0][1].norm, torch.nn.Identity)
    assert pool.branches[1][1].conv.bias is None
    assert pool.branches[0][1].conv.out_channels == 2


def test_pyramid_pooling_is_the_psp_module_of_segmentation_models_pytorch():
    psp = pytest.importorskip("segmentation_models_pytorch.decoders.pspnet.decoder")
    theirs = psp.PSPModule(8, sizes=(1, 2, 3, 6), use_norm=True).eval()
    ours = PyramidPooling(8, 2, project=False, align_corners=True).eval()
    for mine, other in zip(ours.branches, theirs.blocks, strict=True):
        conv = next(m for m in other.modules() if isinstance(m, torch.nn.Conv2d))
        norms = [m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        mine[1].conv.weight.data.copy_(conv.weight)
        if mine[1].conv.bias is not None:
            mine[1].conv.bias.data.copy_(conv.bias if conv.bias is not None else torch.zeros(2))
        if norms and not isinstance(mine[1].norm, torch.nn.Identity):
            mine[1].norm.load_state_dict(norms[0].state_dict())
    x = torch.randn(2, 8, 13, 11)
    y = theirs(x)  # the input stands last there
    torch.testing.assert_close(ours(x), torch.cat([y[:, -8:], y[:, :-8]], 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiScalePooling([]), r"pool_sizes must have at least 1 entry, got \[\]"),
        (lambda: MultiScalePooling([3, 0]), r"pool_sizes\[1\] must be at least 1, got 0"),
        (lambda: MultiScalePooling(pool_type="min"), r"pool_type must be one of .*, got 'min'"),
        (
            lambda: MultiScalePooling([1], pool_type="min"),
            r"pool_type must be one of .*, got 'min'",
        ),
        (lambda: MultiScalePooling(spatial_dims=4), r"spatial_dims must be one of .*, got 4"),
        (lambda: MultiScalePooling([1], spatial_dims=4), r"spatial_dims must be one of .*, got 4"),
        (lambda: SpatialPyramidPooling(0), "num_levels must be at least 1, got 0"),
        (lambda: SpatialPyramidPooling(bins=[2, 0]), r"got bins \[2, 0\]"),
        (lambda: SpatialPyramidPooling(pool_type="l2"), r"pool_type must be one of .*, got 'l2'"),
        (
            lambda: PyramidPooling(3, 8),
            "every one of the 4 branches needs a channel, got in_channels 3",
        ),
        (lambda: PyramidPooling(8, 8, mode="cubic"), r"mode must be one of .*, got 'cubic'"),
        (lambda: PyramidPooling(8, 8, norm="layer"), r"norm must be one of .*, got 'layer'"),
        (lambda: PyramidPooling(8, 8, act="mish"), r"act must be one of .*, got 'mish'"),
        (
            lambda: PyramidPooling(8, 8)(torch.zeros(1, 4, 6, 6)),
            r"the input must have 8 channels, got shape \(1, 4, 6, 6\)",
        ),
        (
            lambda: PyramidPooling(8, 8)(torch.zeros(1, 8, 1, 1)),
            r"need more than one pixel in the smallest feature map, got batch size 1 and size \(1, 1\)",
        ),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()
