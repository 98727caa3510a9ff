"""Pixel shuffling: torch in 2-D, the inverse at every size, tiles."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import nn

from neurenix_ms import PixelShuffle, PixelUnshuffle
from neurenix_ms.execution import TiledModel


@given(dims_and_sizes(), st.data())
def test_the_inverse_is_exact_at_every_size(dims_and_size, data):
    dims, size = dims_and_size
    each = data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    factor = data.draw(st.sampled_from([2, 3, each]))
    x = torch.randn(2, 3, *size)
    y = PixelUnshuffle(factor, spatial_dims=dims)(x)
    factors = [factor] * dims if isinstance(factor, int) else factor
    blocks = [math.ceil(n / f) for n, f in zip(size, factors, strict=True)]
    assert y.shape == (2, 3 * math.prod(factors), *blocks)
    assert torch.equal(PixelShuffle(factor, spatial_dims=dims)(y, size), x)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_in_two_dimensions_it_is_that_of_torch(factor: int):
    x = torch.randn(2, 3, 6 * factor, 4 * factor)
    y = PixelUnshuffle(factor)(x)
    assert torch.equal(y, nn.PixelUnshuffle(factor)(x))
    assert torch.equal(PixelShuffle(factor)(y), nn.PixelShuffle(factor)(y))


def test_an_odd_size_is_padded_with_zeros_at_the_end():
    x = torch.randn(1, 2, 7, 5)
    assert torch.equal(PixelUnshuffle(2)(x), F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1)), 2))


def test_in_three_dimensions_it_is_that_of_monai():
    utils = pytest.importorskip("monai.networks.utils")
    x = torch.randn(1, 16, 3, 4, 5)
    y = PixelShuffle(2, spatial_dims=3)(x)
    assert torch.equal(y, utils.pixelshuffle(x, spatial_dims=3, scale_factor=2))


def test_tiles_are_equal_to_the_whole():
    x = torch.randn(1, 2, 45, 38)
    model = nn.Sequential(
        PixelUnshuffle(2), nn.Conv2d(8, 8, 3, padding=1), PixelShuffle(2), nn.Conv2d(2, 2, 3)
    )
    with torch.no_grad():
        torch.testing.assert_close(TiledModel(model, tile_size=16)(x), model(x))


def test_gradients_are_right():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PixelUnshuffle(2), x)
    y = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: PixelShuffle(2)(y, (5, 4)), y)


@pytest.mark.parametrize("module", [PixelShuffle, PixelUnshuffle])
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0, "factor must be at least 1, got 0"),
        ([2, 2, 2], r"factor must be one number or 2, got \[2, 2, 2\]"),
        ("two", "factor must be .* got 'two'"),
    ],
)
def test_factors_that_do_not_fit_raise(module, factor, message: str):
    with pytest.raises(ValueError, match=message):
        module(factor)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((1, 6, 3, 3), None, r"channels must be a multiple of 4, got shape \(1, 6, 3, 3\)"),
        ((1, 8, 3, 3), (4, 6), r"have \(3, 3\) blocks of \(2, 2\) pixels, got \(4, 6\)"),
        ((1, 8, 3, 3), (7, 6), r"have \(3, 3\) blocks of \(2, 2\) pixels, got \(7, 6\)"),
        ((1, 8, 3, 3), (6, 6, 6), r"original_size must be an int, 2 ints .* got \(6, 6, 6\)"),
    ],
)
def test_inputs_that_do_not_fit_raise(shape, size, message: str):
    with pytest.raises(ValueError, match=message):
        PixelShuffle(2)(torch.zeros(shape), size)
