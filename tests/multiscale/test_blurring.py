"""Blur pooling: closed forms, shifts, Zhang's arithmetic by convolution, timm, tiles."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes

from neurenix_ms import BlurPool
from neurenix_ms.execution import TiledModel


@given(
    dims_and_sizes(),
    st.integers(1, 7),
    st.integers(1, 4),
    st.sampled_from(["reflect", "replicate"]),
)
def test_a_constant_stays_constant(dims_and_size, kernel_size, stride, padding_mode):
    dims, size = dims_and_size
    pool = BlurPool(kernel_size, stride, padding_mode=padding_mode, spatial_dims=dims)
    y = pool(torch.ones(2, 3, *size))
    torch.testing.assert_close(y, torch.ones(2, 3, *(math.ceil(n / stride) for n in size)))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_it_is_a_padded_depthwise_convolution(dims, kernel_size, stride, mode):
    row = torch.tensor([float(math.comb(kernel_size - 1, k)) for k in range(kernel_size)])
    kernel = row / row.sum()
    for _ in range(dims - 1):
        kernel = kernel[..., None] * (row / row.sum())
    x = torch.randn(2, 3, *(9, 8, 7)[:dims])
    border = [(kernel_size - 1) // 2, kernel_size // 2] * dims
    weight = kernel.expand(3, 1, *[-1] * dims)
    convolve = getattr(F, f"conv{dims}d")
    expected = convolve(F.pad(x, border, mode), weight, stride=stride, groups=3)
    pool = BlurPool(kernel_size, stride, padding_mode=mode, spatial_dims=dims)
    torch.testing.assert_close(pool(x), expected)


def test_an_axis_too_short_to_be_mirrored_is_repeated():
    x = torch.randn(1, 1, 2, 9)
    mirrored = BlurPool(5)(x)
    border = F.pad(F.pad(x, (2, 2, 0, 0), "reflect"), (0, 0, 2, 2), "replicate")
    row = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    expected = F.conv2d(border, (row[:, None] * row)[None, None], stride=2)
    torch.testing.assert_close(mirrored, expected)


def test_a_wave_too_short_for_the_coarse_grid_vanishes():
    checkerboard = (-1.0) ** torch.arange(16)[None, None]
    assert BlurPool(spatial_dims=1)(checkerboard).abs().max() == 0
    assert BlurPool(1, spatial_dims=1)(checkerboard).abs().min() == 1  # aliased


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_it_is_that_of_timm(kernel_size: int):
    layers = pytest.importorskip("timm.layers")
    theirs = layers.BlurPool2d(3, filt_size=kernel_size, stride=2)
    x = torch.randn(2, 3, 19, 14)
    torch.testing.assert_close(BlurPool(kernel_size)(x), theirs(x))


def test_gradients_are_right():
    for dims in (1, 2, 3):
        x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(BlurPool(4, spatial_dims=dims).double(), x)


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_tiles_are_equal_to_the_whole(kernel_size: int):
    x = torch.randn(1, 2, 45, 38)
    pool = BlurPool(kernel_size)
    torch.testing.assert_close(TiledModel(pool, tile_size=16)(x), pool(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"padding_mode": "zeros"}, r"padding_mode must be one of \['reflect', .* got 'zeros'"),
    ],
)
def test_arguments_out_of_range_raise(options, message: str):
    with pytest.raises(ValueError, match=message):
        BlurPool(**options)
