"""Fourier mixing against `torch.fft`, on several grids, and in every number of axes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import Tensor, nn

from neurenix_ms import SpectralMixing
from neurenix_ms.execution import TiledModel
from neurenix_ms.meter import count_flops


def bare(modes, dims: int, channels=(2, 3)) -> SpectralMixing:
    return SpectralMixing(*channels, modes, spatial_dims=dims, pointwise=False, act=None).double()


def by_fft(layer: SpectralMixing, x: Tensor) -> Tensor:
    """The transform of all modes, the kept ones times their matrices, and back."""
    size = x.shape[2:]
    modes = layer.fourier.modes
    axes = tuple(range(2, x.ndim))
    spectrum = torch.fft.rfftn(x, dim=axes)
    real, imaginary = layer.fourier.weight.chunk(2, dim=-1)
    counts = [*(2 * m - 1 for m in modes[:-1]), modes[-1]]
    weight = torch.complex(real, imaginary).unflatten(0, counts)
    out = spectrum.new_zeros(len(x), weight.shape[-1], *spectrum.shape[2:])
    lowest = [1 - m for m in modes[:-1]] + [0]
    for entry in torch.cartesian_prod(*map(torch.arange, counts)).view(-1, len(counts)).tolist():
        waves = [first + k for first, k in zip(lowest, entry, strict=True)]
        if any(2 * abs(k) >= n for k, n in zip(waves, size, strict=True)):
            continue  # not resolved
        place = (..., *(k % n for k, n in zip(waves, size, strict=True)))
        out[place] = spectrum[place] @ weight[tuple(entry)]
    return torch.fft.irfftn(out, size, dim=axes)


@given(dims_and_sizes(1, 12), st.integers(1, 5))
def test_equal_to_fft_at_every_size(shape, modes):
    dims, size = shape
    layer = bare(modes, dims)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_fft(layer, x), atol=1e-12, rtol=1e-10)


def test_modes_per_axis():
    layer = bare([4, 1, 3], 3)
    x = torch.randn(1, 2, 9, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_fft(layer, x), atol=1e-12, rtol=1e-10)
    assert len(layer.fourier.weight) == 7 * 1 * 3


def test_float32_is_as_exact_as_fft_on_long_axes():
    layer = bare(12, 1)
    x = torch.randn(1, 2, 5003, dtype=torch.float64)
    exact, single = layer(x), layer.float()
    error = (single(x.float()).double() - exact).abs().max()
    theirs = (by_fft(single, x.float()).double() - exact).abs().max()
    assert error <= max(4 * theirs, 1e-6 * exact.abs().max())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_function_on_two_grids(dims):
    layer = SpectralMixing(1, 2, 4, spatial_dims=dims).double()

    def sampled(n: int) -> Tensor:
        axes = [2 * math.pi * torch.arange(n, dtype=torch.float64) / n for _ in range(dims)]
        grid = torch.meshgrid(*axes, indexing="ij")
        waves = [torch.cos(3 * g + k) + torch.sin(g - k) for k, g in enumerate(grid)]
        return (0.5 + sum(waves) + math.prod(waves))[None, None]

    fine, coarse = layer(sampled(24)), layer(sampled(8))
    torch.testing.assert_close(fine[(..., *(slice(None, None, 3),) * dims)], coarse)


def test_a_shift_of_the_input_shifts_the_output():
    layer, x = SpectralMixing(2, 2, 3).double(), torch.randn(1, 2, 10, 7, dtype=torch.float64)
    moved = layer(x.roll((4, 2), (2, 3)))
    torch.testing.assert_close(moved, layer(x).roll((4, 2), (2, 3)))


def test_waves_above_the_modes_are_dropped():
    layer = bare(3, 1, (1, 1))
    place = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    kept, dropped = (layer(torch.cos(k * place)[None, None]) for k in (2, 3))
    assert kept.std() > 1e-3
    assert dropped.abs().max() < 1e-12


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    layer = SpectralMixing(2, 2, 2, spatial_dims=dims).double()
    x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_its_operations_are_counted():
    layer, x = bare(4, 1, (3, 5)), torch.zeros(1, 3, 32, dtype=torch.float64)
    there, mixed, back = 3 * 32 * 8, 4 * 6 * 10, 5 * 8 * 32
    assert count_flops(lambda: layer(x)) == 2 * (there + mixed + back)


class Deep(nn.Module):
    """Fourier mixing at an eighth of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.deep = nn.Sequential(
            nn.MaxPool2d(8), SpectralMixing(2, 2, 3), nn.Upsample(scale_factor=8)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return y + self.deep(y)


def test_in_tiles_it_is_refused_by_name_or_runs_as_a_part():
    model = Deep().double().eval()
    x = torch.randn(1, 1, 64, 48, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"deep\.1\.fourier"):
        TiledModel(model, 16, whole=())(x)
    with torch.no_grad():
        whole, tiled = model(x), TiledModel(model, 16, whole=("deep.1",))(x)
    assert (whole - tiled).abs().max() <= 1e-10 * whole.std()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SpectralMixing(0, 1), "in_channels must be at least 1, got 0"),
        (lambda: SpectralMixing(1, 1, 0), r"modes\[0\] must be at least 1, got 0"),
        (lambda: SpectralMixing(1, 1, [2, 2, 2]), r"one number or 2 of them, got \[2, 2, 2\]"),
        (lambda: SpectralMixing(1, 1, spatial_dims=4), "spatial_dims must be .*, got 4"),
        (lambda: SpectralMixing(1, 1)(torch.zeros(1, 2, 4, 4)), "must have 1 channels"),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
