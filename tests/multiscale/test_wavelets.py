"""Wavelets: inverse, energy, closed forms, PyWavelets, JPEG 2000, tiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes

from neurenix_ms import InverseWaveletTransform, WaveletTransform
from neurenix_ms.execution import TiledModel
from neurenix_ms.multiscale import lifting
from neurenix_ms.multiscale.lifting import WAVELETS

NAMES = {
    "haar": "haar",
    "cdf53": "bior2.2",
    "cdf97": "bior4.4",
    "db2": "db2",
    "db3": "db3",
    "db4": "db4",
}
VANISHING = {"haar": 1, "cdf53": 2, "cdf97": 4, "db2": 2, "db3": 3, "db4": 4}
WAVELET = pytest.mark.parametrize("wavelet", WAVELETS)
ANY = st.sampled_from(list(WAVELETS))
BOUNDARIES = st.sampled_from(["symmetric", "periodic"])


@given(dims_and_sizes(), ANY, BOUNDARIES, st.integers(1, 3), st.booleans())
def test_the_inverse_is_exact_at_every_size(dims_and_size, wavelet, boundary, levels, with_grad):
    dims, size = dims_and_size
    transform = WaveletTransform(wavelet, levels, boundary=boundary, spatial_dims=dims)
    inverse = InverseWaveletTransform(wavelet, levels, boundary=boundary, spatial_dims=dims)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=with_grad)
    y = transform(x)
    torch.testing.assert_close(inverse(y, size), x, atol=1e-11, rtol=0)
    torch.testing.assert_close(transform.inverse(y, size), x, atol=1e-11, rtol=0)


@given(dims_and_sizes(), ANY, BOUNDARIES)
def test_with_and_without_gradients_it_is_the_same(dims_and_size, wavelet, boundary):
    dims, size = dims_and_size
    transform = WaveletTransform(wavelet, 2, boundary=boundary, spatial_dims=dims)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    for a, b in zip(transform(x), transform(x.clone().requires_grad_()), strict=True):
        assert torch.equal(a, b)


@WAVELET
@pytest.mark.parametrize("size", [(2, 4), (16, 6), (16, 18), (4, 18, 20), (16, 18, 20)])
@pytest.mark.parametrize("boundary", ["symmetric", "periodic"])
def test_even_axes_are_split_together_with_the_same_result(wavelet, size, boundary, monkeypatch):
    monkeypatch.setattr(lifting, "SMALL_BYTES", 0)
    monkeypatch.setattr(lifting, "CACHED_BYTES", 2 * 8 * math.prod(size))  # two channels at a time
    transform = WaveletTransform(wavelet, boundary=boundary, spatial_dims=len(size))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    before = x.clone()
    for a, b in zip(transform(x), transform(x.clone().requires_grad_()), strict=True):
        assert torch.equal(a, b)
        assert a.untyped_storage().nbytes() == a.numel() * 8  # no view of a larger tensor
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 2, 16, 16), (1, 0, 16, 16, 16)])
def test_an_empty_batch_has_empty_bands(shape):
    transform = WaveletTransform("db2", spatial_dims=len(shape) - 2)
    details, low = transform(torch.zeros(shape))
    size = (8,) * (len(shape) - 2)
    assert low.shape == (*shape[:2], *size)
    assert details.shape == (shape[0], shape[1] * (2 ** len(size) - 1), *size)


@given(dims_and_sizes(), ANY, BOUNDARIES, st.integers(1, 3))
def test_a_constant_has_no_details(dims_and_size, wavelet, boundary, levels):
    dims, size = dims_and_size
    transform = WaveletTransform(wavelet, levels, boundary=boundary, spatial_dims=dims)
    *details, coarse = transform(torch.ones(1, 1, *size, dtype=torch.float64))
    assert all(y.abs().max() < 1e-11 for y in details)
    expected = torch.full_like(coarse, 2 ** (dims * levels / 2))
    torch.testing.assert_close(coarse, expected)


@WAVELET
def test_polynomials_have_no_details_inside(wavelet: str):
    position = torch.arange(64, dtype=torch.float64) / 64
    for degree in range(VANISHING[wavelet]):
        details, _ = WaveletTransform(wavelet, spatial_dims=1)(position.pow(degree)[None, None])
        assert details[..., 4:-4].abs().max() < 1e-12


@given(dims_and_sizes(), ANY)
def test_sizes_are_those_of_jpeg_2000(dims_and_size, wavelet):
    dims, size = dims_and_size
    details, coarse = WaveletTransform(wavelet, spatial_dims=dims)(torch.randn(1, 1, *size))
    assert coarse.shape[2:] == details.shape[2:] == tuple(math.ceil(n / 2) for n in size)
    counted = coarse.numel()
    for band in range(1, 2**dims):
        inside = [slice(0, n // 2 if band >> k & 1 else None) for k, n in enumerate(size)]
        counted += details[0, band - 1][tuple(inside)].numel()
        outside = details[0, band - 1].clone()
        outside[tuple(inside)] = 0
        assert not outside.any()
    assert counted == math.prod(size)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db3", "db4"])
def test_orthogonal_wavelets_keep_the_energy_of_a_period(wavelet: str):
    x = torch.randn(1, 2, 16, 24, dtype=torch.float64)
    levels = WaveletTransform(wavelet, 2, boundary="periodic")(x)
    torch.testing.assert_close(sum(y.square().sum() for y in levels), x.square().sum())


@pytest.mark.parametrize("wavelet", ["cdf53", "cdf97"])
@pytest.mark.parametrize("size", [(9, 6), (2, 17), (5, 5), (32, 31), (7, 2)])
def test_it_is_pywavelets_with_mirrored_borders(wavelet: str, size: tuple[int, int]):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(*size, dtype=torch.float64)
    details, coarse = WaveletTransform(wavelet)(x[None, None])
    low, high = pywt.dwt2(x.numpy(), NAMES[wavelet], mode="reflect")
    first = 1 if wavelet == "cdf53" else 2  # coefficients of the extended part come before
    for band, (ours, theirs) in enumerate(
        zip([coarse[0, 0], *details[0]], [low, *high], strict=True)
    ):
        n, m = ((k + 1 - (band >> axis & 1)) // 2 for axis, k in enumerate(size))
        expected = theirs[first:, first:][:n, :m]
        np.testing.assert_allclose(ours[:n, :m], expected, atol=1e-12)


@pytest.mark.parametrize("size", [(9, 6), (1, 5), (2, 2), (7, 7), (32, 30)])
def test_haar_is_pywavelets_at_every_size(size: tuple[int, int]):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(*size, dtype=torch.float64)
    details, coarse = WaveletTransform("haar")(x[None, None])
    low, high = pywt.dwt2(x.numpy(), "haar", mode="symmetric")
    for ours, theirs in zip([coarse[0, 0], *details[0]], [low, *high], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@WAVELET
def test_inside_it_is_pywavelets_of_any_mode(wavelet: str):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(60, dtype=torch.float64)
    details, coarse = WaveletTransform(wavelet, spatial_dims=1)(x[None, None])
    for ours, theirs in zip(
        (coarse, details), pywt.dwt(x.numpy(), NAMES[wavelet], "zero"), strict=True
    ):
        middle = ours[0, 0, 6:-6].numpy()
        shifts = range(len(theirs) - len(middle) + 1)
        assert any(np.allclose(theirs[k : k + len(middle)], middle, atol=1e-12) for k in shifts)


@WAVELET
def test_periodic_it_is_pywavelets_up_to_a_shift(wavelet: str):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(48, dtype=torch.float64)
    details, coarse = WaveletTransform(wavelet, boundary="periodic", spatial_dims=1)(x[None, None])
    odd = wavelet in ("db2", "db4")  # a period starts at an odd sample there
    theirs = pywt.dwt(np.roll(x.numpy(), int(odd)), NAMES[wavelet], "periodization")
    for ours, other in zip((coarse[0, 0], details[0, 0]), theirs, strict=True):
        assert any(np.allclose(np.roll(ours, k), other, atol=1e-12) for k in range(-3, 4))


def test_three_axes_are_those_of_pywavelets():
    pywt = pytest.importorskip("pywt")
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    details, coarse = WaveletTransform("haar", spatial_dims=3)(x[None, None])
    theirs = pywt.dwtn(x.numpy(), "haar")
    np.testing.assert_allclose(coarse[0, 0], theirs["aaa"], atol=1e-12)
    for band, ours in enumerate(details[0], start=1):
        name = "".join("d" if band >> axis & 1 else "a" for axis in range(3))
        np.testing.assert_allclose(ours, theirs[name], atol=1e-12)


@WAVELET
def test_gradients_are_right(wavelet: str):
    transform = WaveletTransform(wavelet, 2)
    x = torch.randn(1, 1, 7, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(transform(x)), x)
    assert torch.autograd.gradcheck(lambda *y: transform.inverse(y, (7, 10)), tuple(transform(x)))


@WAVELET
def test_tiles_are_equal_to_the_whole(wavelet: str):
    x = torch.randn(1, 2, 45, 38)
    transform = WaveletTransform(wavelet)
    for tiled, whole in zip(TiledModel(transform, tile_size=16)(x), transform(x), strict=True):
        torch.testing.assert_close(tiled, whole)


def test_periodic_wavelets_raise_in_tiles():
    transform = WaveletTransform("cdf97", boundary="periodic")
    with pytest.raises(
        ValueError, match=r"must have a bounded receptive field .* WaveletTransform"
    ):
        TiledModel(transform, tile_size=16)(torch.randn(1, 2, 45, 38))


def test_channels_do_not_mix():
    x = torch.randn(1, 3, 8, 9)
    details, coarse = WaveletTransform("cdf97")(x)
    alone, low = WaveletTransform("cdf97")(x[:, 1:2])
    torch.testing.assert_close(coarse[:, 1:2], low)
    torch.testing.assert_close(details[:, 1::3], alone)


LEVELS = [torch.zeros(1, 6, 5, 4), torch.zeros(1, 6, 3, 2), torch.zeros(1, 2, 3, 2)]


@pytest.mark.parametrize(
    ("levels", "size", "message"),
    [
        (LEVELS[1:], None, r"the details of 2 level\(s\) and an approximation, got 2 tensor"),
        (LEVELS[::-1], None, r"finest first, .* got shapes \[\(1, 2, 3, 2\), \(1, 6, 3, 2\)"),
        ([LEVELS[0], LEVELS[0], LEVELS[2]], None, r"each half as large .* \(1, 6, 5, 4\)\D+1, 2"),
        ([*LEVELS[:2], torch.zeros(1, 3, 3, 2)], None, r"details of 9 channels, .* \(1, 3, 3, 2\)"),
        ([*LEVELS[:2], torch.zeros(2, 2, 3, 2)], None, r"got shapes .*\(2, 2, 3, 2\)"),
        (LEVELS, (8, 8), r"whose half, rounded up, .* details, \(5, 4\), got \(8, 8\)"),
        (LEVELS, (9, 8, 7), r"original_size must be an int, 2 ints or .* got \(9, 8, 7\)"),
    ],
)
def test_levels_that_do_not_fit_raise(levels, size, message: str):
    with pytest.raises(ValueError, match=message):
        InverseWaveletTransform(num_levels=2)(levels, size)
    with pytest.raises(ValueError, match=message):
        WaveletTransform(num_levels=2).inverse(levels, size)


@pytest.mark.parametrize("module", [WaveletTransform, InverseWaveletTransform])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wavelet": "db5"}, r"wavelet must be one of \['haar', .* got 'db5'"),
        ({"boundary": "zero"}, r"boundary must be one of \['symmetric', 'periodic'\], got 'zero'"),
        ({"num_levels": 0}, "num_levels must be at least 1, got 0"),
        ({"spatial_dims": 4}, r"spatial_dims must be one of \[1, 2, 3\], got 4"),
    ],
)
def test_unknown_options_raise(module, options, message: str):
    with pytest.raises(ValueError, match=message):
        module(**options)
