"""The loss of Laplacian pyramids: that of both pyramids, at every size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes

from neurenix_ms import LaplacianPyramid
from neurenix_ms.multiscale import LaplacianPyramidLoss


@given(dims_and_sizes(1, 12), st.integers(1, 4), st.sampled_from(["l1", "mse"]))
def test_it_compares_the_pyramids_of_both(shape, num_levels, loss):
    dims, size = shape
    x, y = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    pyramid = LaplacianPyramid(num_levels, None, spatial_dims=dims)
    pairs = zip(pyramid(x), pyramid(y), strict=True)
    wanted = [(a - b).abs().mean() if loss == "l1" else (a - b).square().mean() for a, b in pairs]
    compare = LaplacianPyramidLoss(num_levels, loss, spatial_dims=dims)
    torch.testing.assert_close(torch.stack(compare.per_level(x, y)), torch.stack(wanted))
    torch.testing.assert_close(compare(x, y), sum(wanted))
    weighted = LaplacianPyramidLoss(
        num_levels, loss, weights=[k + 1.0 for k in range(num_levels)], spatial_dims=dims
    )
    torch.testing.assert_close(weighted(x, y), sum((k + 1) * w for k, w in enumerate(wanted)))


def test_the_published_weights_are_means():
    x, y = torch.randn(2, 1, 1, 32, 32, dtype=torch.float64)
    levels = LaplacianPyramid(4, None)(x - y)
    published = sum(4**k * level.abs().sum() for k, level in enumerate(levels))
    torch.testing.assert_close(LaplacianPyramidLoss(4)(x, y), published / x.numel())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right_and_zero_is_no_trouble(dims):
    x = torch.randn(1, 1, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    loss = LaplacianPyramidLoss(2, spatial_dims=dims)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.zeros_like(x)), x)
    (slope,) = torch.autograd.grad(loss(x, x.detach()), x)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LaplacianPyramidLoss(0), "num_levels must be at least 1, got 0"),
        (lambda: LaplacianPyramidLoss(1, weights=[-1.0]), r"not all 0, got \[-1.0\]"),
        (lambda: LaplacianPyramidLoss(3, weights=[1.0]), "one for each of 3 levels, got 1"),
        (lambda: LaplacianPyramidLoss(loss="huber"), "loss must be one of .*, got 'huber'"),
        (
            lambda: LaplacianPyramidLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)),
            "must have the shape of its output",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_sums_beyond_half_precision_do_not_overflow(loss):
    x = 2 * torch.ones(1, 1, 300, 300, dtype=torch.float16)
    compare = LaplacianPyramidLoss(1, loss)
    assert compare(x, torch.zeros_like(x)).item() == (2 if loss == "l1" else 4)
