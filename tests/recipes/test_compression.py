"""Linear methods of compression that implicit fields are compared with: known fields and counts."""

import math

import pytest
import torch

from neurenix_ms.datasets.wake import pod
from neurenix_ms.recipes.implicit.compression import cosine, low_rank, positions


def product(*shape: int) -> torch.Tensor:
    """A field that is one pattern in space times one function of time."""
    t, y, x = (torch.arange(n, dtype=torch.float64) for n in shape)
    return torch.einsum("t,y,x->tyx", 1 + t, torch.sin(y), torch.cos(0.3 * x))


def test_a_field_of_one_pattern_has_rank_one():
    values = product(5, 6, 7)
    low, numbers = low_rank(values, 1)
    torch.testing.assert_close(low, values)
    assert numbers == 5 + 6 * 7


def test_the_error_of_a_rank_is_that_of_the_singular_values_left_out():
    torch.manual_seed(0)
    values = torch.randn(6, 4, 5, dtype=torch.float64)
    scales = torch.linalg.svdvals(values.flatten(1))
    for rank in (1, 2, 4):
        low, _ = low_rank(values, rank)
        assert (low - values).norm().item() == pytest.approx(scales[rank:].norm().item())


def test_of_a_field_without_mean_it_is_the_decomposition_of_the_datasets():
    torch.manual_seed(0)
    values = torch.randn(6, 4, 5, dtype=torch.float64)
    values = values - values.mean(0)
    coefficients, modes, _ = pod(values, 3)
    torch.testing.assert_close(low_rank(values, 3)[0], torch.tensordot(coefficients, modes, 1))


def test_a_sum_of_two_cosines_needs_two_coefficients():
    t, y, x = (math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (6, 8, 10))
    values = torch.einsum("t,y,x->tyx", torch.cos(2 * t), torch.cos(3 * y), torch.cos(x))
    values = 3 * values + torch.einsum("t,y,x->tyx", torch.cos(t), torch.cos(y), torch.cos(4 * x))
    needed = 2 + positions(2, values.numel())
    low, numbers = cosine(values, needed)
    torch.testing.assert_close(low, values)
    assert numbers == needed
    first, numbers = cosine(values, needed - 1)  # the larger one only
    assert numbers < needed
    assert ((first - values).norm() / values.norm()).item() == pytest.approx(1 / math.sqrt(10))


def test_as_many_coefficients_are_kept_as_fit():
    torch.manual_seed(0)
    values = torch.randn(8, 16, 16)
    errors = []
    for numbers in (10, 100, 1000, 2048, 5000):
        low, stored = cosine(values, numbers)
        assert min(numbers, 2048) - 1 <= stored <= numbers
        errors.append((low - values).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4  # all of them


def test_positions_take_the_entropy_of_a_mask():
    assert positions(512, 1024) == 1024 / 32  # a bit each
    assert positions(256, 1024) == math.ceil((0.25 * 2 + 0.75 * math.log2(4 / 3)) * 1024 / 32)
    assert positions(0, 1024) == positions(1024, 1024) == 0
