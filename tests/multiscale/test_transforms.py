"""Transforms and pyramids against torch, OpenCV and their own inverses."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes

from neurenix_ms import (
    GaussianPyramid,
    LaplacianPyramid,
    MultiScaleTransform,
    PyramidDownsample,
    Rescale,
)
from neurenix_ms._core.dims import LINEAR_MODES
from neurenix_ms._core.sizes import scaled

SCALES = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0, 1.5, 2.0])


@given(
    dims_and_sizes(1, 15),
    st.lists(SCALES, min_size=1, max_size=3),
    st.sampled_from(["bilinear", "nearest", "area"]),
)
def test_every_scale_is_interpolation_to_the_floored_size(shape, scales, mode):
    dims, size = shape
    x = torch.randn(1, 2, *size)
    torch_mode = LINEAR_MODES[dims] if mode == "bilinear" else mode
    options = {"align_corners": False} if mode == "bilinear" else {}
    for scale, y in zip(
        scales, MultiScaleTransform(scales, mode, spatial_dims=dims)(x), strict=True
    ):
        goal = [max(1, math.floor(n * scale)) for n in size]
        assert torch.equal(y, F.interpolate(x, goal, mode=torch_mode, **options))


@given(st.integers(1, 4000), SCALES)
def test_the_scaled_size_is_that_of_interpolate(n, scale):
    if n * scale >= 1:
        expected = F.interpolate(torch.zeros(1, 1, n), scale_factor=scale).shape[2]
        assert scaled([n], scale) == (expected,)


def test_scale_one_is_the_tensor_itself():
    x = torch.randn(1, 2, 5, 7)
    assert MultiScaleTransform([1.0])(x)[0] is x
    assert Rescale(1.0)(x) is x


@given(dims_and_sizes(1, 15), SCALES)
def test_shapes_come_back_exactly(shape, scale):
    dims, size = shape
    x = torch.randn(1, 2, *size)
    rescale = Rescale(scale, spatial_dims=dims)
    assert rescale.inverse(rescale(x)).shape == x.shape
    assert pickle.loads(pickle.dumps(rescale)).inverse(x, size).shape == x.shape
    transform = MultiScaleTransform([scale, 1.0], spatial_dims=dims)
    back = transform.inverse(transform(x), x.shape)
    assert [y.shape for y in back] == [x.shape] * 2
    assert torch.equal(back[1], x)


def test_inverse_sizes_can_be_given_in_three_ways():
    transform = MultiScaleTransform([0.5])
    x = torch.randn(1, 2, 3, 3)
    assert transform.inverse(x, 6).shape == (1, 2, 6, 6)
    assert transform.inverse(x, (6, 7)).shape == (1, 2, 6, 7)
    assert transform.inverse(x, (9, 9, 6, 7)).shape == (1, 2, 6, 7)


def test_rescale_takes_a_factor_per_axis():
    rescale = Rescale((0.5, 2.0))
    x = torch.randn(1, 1, 7, 5)
    assert rescale(x).shape == (1, 1, 3, 10)
    assert rescale.inverse(rescale(x)).shape == x.shape


def test_without_a_fitting_forward_the_inverse_divides_by_the_factor():
    rescale = Rescale(0.5)
    assert rescale.inverse(torch.zeros(1, 1, 4, 5)).shape == (1, 1, 8, 10)
    rescale(torch.zeros(1, 1, 9, 9))
    assert rescale.inverse(torch.zeros(1, 1, 4, 5)).shape == (1, 1, 8, 10)
    assert rescale.inverse(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 9, 9)


def test_the_other_modes_are_those_of_torch():
    x = torch.randn(1, 2, 9, 12)
    (y,) = MultiScaleTransform([0.5], "bicubic", antialias=True)(x)
    assert torch.equal(y, F.interpolate(x, (4, 6), mode="bicubic", antialias=True))
    (y,) = MultiScaleTransform([0.5], align_corners=True)(x)
    assert torch.equal(y, F.interpolate(x, (4, 6), mode="bilinear", align_corners=True))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_halving_even_sizes_is_averaging(dims):
    x = torch.randn(1, 2, *(8, 4, 12)[:dims])
    pool = getattr(F, f"avg_pool{dims}d")
    levels = PyramidDownsample(3, spatial_dims=dims)(x)
    assert levels[0] is x
    torch.testing.assert_close(levels[1], pool(x, 2))
    torch.testing.assert_close(levels[2], pool(pool(x, 2), 2))


@given(dims_and_sizes(1, 15))
def test_every_axis_is_halved_and_never_lost(shape):
    dims, size = shape
    for level, y in enumerate(PyramidDownsample(4, spatial_dims=dims)(torch.zeros(1, 1, *size))):
        assert y.shape[2:] == tuple(max(1, n >> level) for n in size)


def test_levels_can_be_selected():
    pyramid = PyramidDownsample(3)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="PyramidDownsample has no cached features"):
        pyramid.get_level(0)
    levels = pyramid(x)
    assert pyramid.get_level(-1) is levels[2]
    assert pyramid.get_level(1).requires_grad
    other = torch.zeros(1, 1, 4, 4)
    assert pyramid.get_level(1, other).shape == (1, 1, 2, 2)
    assert pyramid.get_level(0) is x
    for level in (3, -4):
        with pytest.raises(IndexError, match=f"level must be an index into 3 levels, got {level}"):
            pyramid.get_level(level)
    pyramid.clear_features()
    with pytest.raises(RuntimeError, match="has no cached features"):
        pyramid.get_level(0)


@given(dims_and_sizes(1, 14), st.sampled_from([None, 0.7, 1.0, 2.0]), st.sampled_from([1, 3, 5, 7]))
def test_a_laplacian_pyramid_reconstructs_its_input(shape, sigma, kernel_size):
    dims, size = shape
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    pyramid = LaplacianPyramid(4, sigma, kernel_size, spatial_dims=dims)
    levels = pyramid(x)
    torch.testing.assert_close(pyramid.reconstruct(levels), x, atol=1e-13, rtol=0)
    gaussian = GaussianPyramid(4, sigma, kernel_size, spatial_dims=dims)(x)
    assert torch.equal(levels[-1], gaussian[-1])
    for level, y in enumerate(levels):
        assert y.shape[2:] == tuple(-(-n // 2**level) for n in size)


@given(dims_and_sizes(1, 14), st.sampled_from([None, 1.0]))
def test_smoothing_keeps_a_constant(shape, sigma):
    dims, size = shape
    x = torch.full((1, 2, *size), 3.0, dtype=torch.float64)
    for y in GaussianPyramid(3, sigma, spatial_dims=dims)(x):
        torch.testing.assert_close(y, torch.full_like(y, 3.0), atol=1e-14, rtol=0)


@pytest.mark.parametrize("sigma", [None, 1.3])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_level_is_a_mirrored_convolution(dims, sigma):
    x = torch.randn(2, 3, *(9, 8, 7)[:dims], dtype=torch.float64)
    row = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64)
    if sigma is not None:
        row = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=torch.float64) / sigma) ** 2)
    row = row / row.sum()
    kernel = row
    for _ in range(dims - 1):
        kernel = kernel[..., None] * row
    padded = F.pad(x, [2] * 2 * dims, mode="reflect").flatten(0, 1)[:, None]
    smooth = getattr(F, f"conv{dims}d")(padded, kernel[None, None], stride=2)
    expected = smooth[:, 0].unflatten(0, (2, 3))
    torch.testing.assert_close(GaussianPyramid(2, sigma, spatial_dims=dims)(x)[1], expected)


@pytest.mark.parametrize("size", [(16, 12), (17, 13), (31, 8)])
def test_the_binomial_pyramid_is_that_of_opencv(size):
    cv2 = pytest.importorskip("cv2")
    x = torch.rand(1, 1, *size)
    expected = torch.from_numpy(cv2.pyrDown(x[0, 0].numpy()))
    ours = GaussianPyramid(2, sigma=None)(x)[1][0, 0]
    torch.testing.assert_close(ours, expected, atol=2e-7, rtol=0)


def test_pyramids_have_no_parameters():
    for pyramid in (GaussianPyramid(), LaplacianPyramid()):
        assert not list(pyramid.parameters())
        assert not pyramid.state_dict()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_of_the_transforms_are_right(dims):
    x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    for module in (
        MultiScaleTransform([1.0, 0.5], spatial_dims=dims),
        Rescale(1.7, spatial_dims=dims),
        PyramidDownsample(2, spatial_dims=dims),
        LaplacianPyramid(2, spatial_dims=dims),
    ):
        assert torch.autograd.gradcheck(
            lambda x, module=module: tuple(y) if isinstance(y := module(x), list) else y, x
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiScaleTransform([]), "scales must hold at least one scale, got an empty list"),
        (lambda: MultiScaleTransform([1, 0]), r"scales\[1\] must be above 0, got 0"),
        (
            lambda: MultiScaleTransform([float("nan")]),
            r"scales\[0\] must be a finite number, got nan",
        ),
        (
            lambda: MultiScaleTransform([float("inf")]),
            r"scales\[0\] must be a finite number, got inf",
        ),
        (lambda: MultiScaleTransform(mode="cubic"), "mode must be one of .*, got 'cubic'"),
        (
            lambda: MultiScaleTransform(mode="bicubic", spatial_dims=3),
            "mode 'bicubic' needs spatial_dims 2, got 3",
        ),
        (
            lambda: MultiScaleTransform(mode="nearest", antialias=True),
            "antialias needs spatial_dims 2 and mode 'bilinear' or 'bicubic', got spatial_dims 2",
        ),
        (
            lambda: MultiScaleTransform(spatial_dims=3, antialias=True),
            "got spatial_dims 3 and mode",
        ),
        (
            lambda: MultiScaleTransform().inverse(torch.zeros(1, 1, 2, 2), (1, 2, 3)),
            r"original_size must be an int, 2 ints or a shape of 4, got \(1, 2, 3\)",
        ),
        (lambda: Rescale((0.5, 0.5, 0.5)), "scale_factor must be one factor or 2, got 3"),
        (lambda: Rescale(-1), r"scale_factor must be above 0, got -1"),
        (lambda: PyramidDownsample(0), "num_levels must be at least 1, got 0"),
        (lambda: GaussianPyramid(0), "num_levels must be at least 1, got 0"),
        (lambda: GaussianPyramid(kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: GaussianPyramid(sigma=0.0), "sigma must be finite and above 0, or None, got 0.0"),
        (lambda: GaussianPyramid(spatial_dims=0), "spatial_dims must be one of .*, got 0"),
        (
            lambda: LaplacianPyramid(3).reconstruct([torch.zeros(1, 1, 2, 2)]),
            "reconstruct needs 3 levels, got 1",
        ),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()
