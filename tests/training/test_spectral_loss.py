"""Energy per band of wavenumbers: Parseval, closed forms, and no value that is not a number."""

import math

import pytest
import torch
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor

from neurenix_ms.training import SpectralLoss


@given(dims_and_sizes(1, 12))
def test_energies_add_up_to_the_mean_square(shape):
    _, size = shape
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for loss in (SpectralLoss(), SpectralLoss(3), SpectralLoss(1)):
        total = loss.energies(x).sum(-1)
        torch.testing.assert_close(total, x.square().flatten(2).mean(-1))


def wave(cycles: float, size: tuple[int, ...], axis: int) -> Tensor:
    place = torch.arange(size[axis], dtype=torch.float64) * (2 * math.pi * cycles / size[axis])
    shape = [1] * len(size)
    shape[axis] = -1
    return place.cos().view(1, 1, *shape).expand(1, 1, *size)


@pytest.mark.parametrize(("size", "axis"), [((24,), 0), ((24, 16), 0), ((8, 24, 12), 1)])
def test_a_wave_is_in_the_band_of_its_wavenumber(size, axis):
    loss = SpectralLoss()
    for cycles in (0, 1, 5):
        found = loss.energies(3 * wave(cycles, size, axis))[0, 0]
        wanted = torch.zeros_like(found)
        wanted[cycles] = 9.0 if cycles == 0 else 4.5
        torch.testing.assert_close(found, wanted)
    halves = SpectralLoss(2).energies(wave(5, size, axis) + wave(7, size, axis))
    torch.testing.assert_close(halves[0, 0], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_a_factor_counts_alike_in_all_bands():
    x = torch.randn(2, 1, 16, 12, dtype=torch.float64)
    loss = SpectralLoss(epsilon=0.0)
    assert loss(3 * x, x).item() == pytest.approx(math.log(9))
    assert loss(x, 3 * x).item() == pytest.approx(math.log(9))
    weighted = SpectralLoss(weights=[1.0, 0, 2], epsilon=0.0)
    assert weighted(3 * x, x).item() == pytest.approx(math.log(9))


def test_it_compares_scales_and_not_positions():
    x = torch.randn(1, 1, 20, 20)
    assert SpectralLoss()(x.roll((3, 5), (2, 3)), x).item() < 1e-4
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert SpectralLoss()(smooth, x) > 0.5
    lowest = SpectralLoss(weights=[1.0] + [0] * 9)
    assert lowest(smooth, x) < SpectralLoss(weights=[0] * 9 + [1.0])(smooth, x)


def test_the_mean_may_be_left_out():
    x = torch.randn(1, 1, 15, dtype=torch.float64)
    assert SpectralLoss(remove_mean=True)(x + 7, x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("difference", ["log", "relative"])
@pytest.mark.parametrize("size", [(1,), (7, 1), (4, 5, 3)])
def test_nothing_gives_a_number_and_a_gradient(difference, size):
    loss = SpectralLoss(difference=difference)
    for scale in (0.0, 1.0):
        x = (scale * torch.randn(2, 1, *size)).requires_grad_()
        value = loss(x, torch.zeros(2, 1, *size))
        value.backward()
        assert value.isfinite()
        assert x.grad.isfinite().all()
    assert loss(torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)) == 0


@pytest.mark.parametrize("difference", ["log", "relative"])
def test_its_gradient_is_right(difference):
    x, y = torch.randn(2, 1, 1, 5, 4, dtype=torch.float64)
    loss = SpectralLoss(difference=difference, epsilon=0.1)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


def test_half_precision_is_computed_in_float32():
    x = torch.randn(1, 1, 64)
    assert SpectralLoss()(2 * x.half(), x.half()).item() == pytest.approx(math.log(4), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SpectralLoss(0), "num_bands must be at least 1, got 0"),
        (lambda: SpectralLoss(weights=[0.0]), r"not all 0, got \[0.0\]"),
        (lambda: SpectralLoss(2, weights=[1.0]), "one for each of 2 bands, got 1"),
        (lambda: SpectralLoss(epsilon=-1), "epsilon must be at least 0, got -1"),
        (lambda: SpectralLoss(difference="l1"), "difference must be one of .*, got 'l1'"),
        (
            lambda: SpectralLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5)),
            "must have the shape of its output",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
