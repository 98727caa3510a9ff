"""Structural similarity against its definition, torchmetrics, and where that has none."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from neurenix_ms.training import MultiScaleStructuralSimilarity

PUBLISHED = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def window(n: int) -> Tensor:
    """The Gaussian of standard deviation 1.5 and radius 5 around every pixel of an axis."""
    apart = torch.arange(n, dtype=torch.float64).unsqueeze(1) - torch.arange(n)
    return torch.exp(-0.5 * (apart / 1.5) ** 2) * (apart.abs() <= 5)


def by_definition(x: Tensor, y: Tensor, mask: Tensor, scales: int) -> Tensor:
    """Equations 2 to 7 for one sample, one scale after the other."""
    weights = torch.tensor(PUBLISHED[:scales], dtype=torch.float64)
    weights = weights / weights.sum() * sum(PUBLISHED)
    index = torch.ones((), dtype=torch.float64)
    for scale in range(scales):
        full = torch.ones((), dtype=torch.float64)
        for axis, n in enumerate(x.shape[1:]):  # one matrix over all pixels
            full = torch.kron(full, window(n)) if axis else window(n)
        flat = mask.flatten()
        full = full * flat
        full = full / full.sum(1, keepdim=True).clamp(min=1e-300)

        def mean(v: Tensor, full: Tensor = full) -> Tensor:
            return v @ full.T

        a, b = x.flatten(1), y.flatten(1)
        ma, mb = mean(a), mean(b)
        va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        value = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
        if scale == scales - 1:
            value = value * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        index = index * value[:, flat > 0].mean().clamp(min=1e-6) ** weights[scale]
        x, y, mask = (halved(x * mask, mask), halved(y * mask, mask), halved(mask, mask, False))
    return index


def halved(x: Tensor, mask: Tensor, divide: bool = True) -> Tensor:
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 1]
    edge = [min(2, n) for n in x.shape[1:]]
    share = pool(mask, edge, ceil_mode=True)
    if not divide:
        return (share > 0).double()
    return pool(x, edge, ceil_mode=True) / share.clamp(min=1e-6)


@given(dims_and_sizes(1, 8))
def test_it_is_its_definition_at_every_size_with_and_without_a_mask(shape):
    _, size = shape
    x, y = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    mask = (torch.rand(2, 1, *size) < 0.7).double()
    mask[(slice(None), slice(None), *(0,) * len(size))] = 1
    scales = min(5, max(size).bit_length())
    loss = MultiScaleStructuralSimilarity()
    for given_mask, used in ((None, torch.ones_like(mask)), (mask, mask)):
        wanted = [by_definition(x[k], y[k], used[k], scales) for k in range(2)]
        found = loss.similarity(x, y, given_mask)
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(loss(x, y, given_mask), 1 - found.mean())


@pytest.mark.parametrize("size", [(48, 40), (28, 30, 26)])
def test_one_scale_is_that_of_torchmetrics_inside(size):
    x, y = torch.rand(2, 2, 1, *size, dtype=torch.float64)
    inner = (..., *(slice(11, -11),) * len(size))
    flat = torch.full_like(x, 0.4)  # so that borders say nothing
    first, second = flat.clone(), flat.clone()
    first[inner], second[inner] = x[inner], y[inner]
    wanted = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    found = MultiScaleStructuralSimilarity(weights=[1.0]).similarity(first, second)
    torch.testing.assert_close(found, wanted.double(), atol=1e-6, rtol=1e-6)


def test_pixels_that_do_not_count_have_no_say():
    x, y = torch.rand(2, 1, 2, 20, 17)
    mask = torch.ones(1, 1, 20, 17, dtype=torch.bool)
    mask[..., 9:] = False
    loss = MultiScaleStructuralSimilarity()
    spoilt = torch.where(mask, x, 100.0).requires_grad_()
    value = loss(spoilt, y, mask)
    torch.testing.assert_close(value, loss(x, y, mask))
    (slope,) = torch.autograd.grad(value, spoilt)
    assert slope[..., 9:].count_nonzero() == 0
    assert slope[..., :9].count_nonzero() > 0


@pytest.mark.parametrize("size", [(1,), (3, 1), (64,), (9, 7, 2)])
@pytest.mark.parametrize("kind", ["zero", "same", "opposite", "large"])
def test_nothing_gives_no_number(size, kind):
    y = torch.rand(2, 1, *size)
    x = {"zero": 0 * y, "same": y.clone(), "opposite": 1 - y, "large": 1e6 * y}[kind]
    value = MultiScaleStructuralSimilarity()(x.requires_grad_(), y)
    value.backward()
    assert 0 - 1e-5 <= value.item() <= 1
    assert x.grad.isfinite().all()


def test_what_is_far_from_zero_is_compared_as_exactly():
    x, y = torch.rand(2, 1, 1, 32, 32)
    loss = MultiScaleStructuralSimilarity(weights=[0, 0, 1.0])
    near, far = loss(x, y), loss(x + 1000, y + 1000)
    assert abs(near - far) < 0.35  # the means are alike there, the contrasts are not
    contrast = MultiScaleStructuralSimilarity(weights=[1.0, 0.0])
    assert math.isclose(contrast(x, y), contrast(x + 1000, y + 1000), abs_tol=1e-2)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    x, y = torch.rand(2, 1, 1, *(5, 4, 3)[:dims], dtype=torch.float64)
    loss, target = MultiScaleStructuralSimilarity(weights=[0.5, 0.5]), 0.7 * x + 0.3 * y
    assert torch.autograd.gradcheck(lambda x: loss(x, target), x.requires_grad_())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiScaleStructuralSimilarity(0), "data_range must be above 0, got 0"),
        (lambda: MultiScaleStructuralSimilarity(weights=[]), r"not all 0, got \[\]"),
        (lambda: MultiScaleStructuralSimilarity(sigma=0), "sigma must be above 0, got 0"),
        (
            lambda: MultiScaleStructuralSimilarity()(torch.zeros(1, 1), torch.zeros(1, 1)),
            r"number of spatial axes must be one of \[1, 2, 3\], got 0",
        ),
        (
            lambda: MultiScaleStructuralSimilarity()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5)),
            "must have the shape of its output",
        ),
        (
            lambda: MultiScaleStructuralSimilarity()(*torch.zeros(3, 1, 2, 4)),
            r"mask must have shape \(1, 1, 4\), got \(1, 2, 4\)",
        ),
        (
            lambda: MultiScaleStructuralSimilarity()(*torch.zeros(3, 1, 1, 4)),
            "mask must include a pixel of every sample",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
