"""Mass against hand-computed values, its conservation, and cases without mass."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurenix_ms.conservation import (
    MassConservationLoss,
    conserve_mass,
    mass_error,
    rollout,
    total_mass,
)

NAN = float("nan")
SEA = torch.tensor([[True, True, False], [True, False, True]])
BOTH = pytest.mark.parametrize("method", ["scale", "shift"])


def test_mass_is_density_times_area_inside_the_mask():
    x = torch.arange(12.0).view(2, 1, 2, 3)
    assert total_mass(x).tolist() == [[15], [51]]
    assert total_mass(x, SEA).tolist() == [[0 + 1 + 3 + 5], [6 + 7 + 9 + 11]]
    area = torch.tensor([[1.0], [10.0]])
    assert total_mass(x, SEA, area).tolist() == [[0 + 1 + 30 + 50], [6 + 7 + 90 + 110]]
    assert total_mass(x, SEA.float(), 0.5).tolist() == [[4.5], [16.5]]


def test_half_precision_does_not_overflow():
    x = torch.ones(1, 1, 512, 512, dtype=torch.half)
    assert total_mass(x).item() == 512**2
    kept = conserve_mass(x, 2 * x)
    assert kept.dtype == torch.half
    assert (kept == 2).all()


@BOTH
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(0, 9))
def test_the_mass_of_the_reference_is_conserved(method, spatial_dims, n, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (n, n + 2, n + 1)[:spatial_dims]
    pred = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    mask = torch.rand(size, generator=generator) > 0.3
    area = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    kept = conserve_mass(pred, reference, mask, area, method)
    wanted = total_mass(reference, mask, area)
    torch.testing.assert_close(total_mass(kept, mask, area), wanted, rtol=1e-9, atol=1e-9)
    assert (kept[..., ~mask] == 0).all()
    if method == "scale":
        assert (kept >= 0).all()
        empty = total_mass(pred.clamp(min=0), mask) == 0
        assert ((kept == 0) | (pred > 0))[~empty].all()


def test_a_shift_is_one_constant():
    pred, reference = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 3)
    difference = (conserve_mass(pred, reference, SEA, method="shift") - pred)[..., SEA]
    torch.testing.assert_close(difference, difference[..., :1].expand_as(difference))


@BOTH
def test_a_density_with_the_right_mass_is_unchanged(method):
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(conserve_mass(x, x, method=method), x)


@BOTH
def test_gradients_are_right(method):
    pred = (torch.rand(1, 2, 3, 3, dtype=torch.float64) + 0.1).requires_grad_()
    reference = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.eye(3) == 0
    assert torch.autograd.gradcheck(
        lambda a, b: conserve_mass(a, b, mask, 0.5, method), (pred, reference)
    )


@BOTH
def test_a_prediction_without_mass_gets_it_evenly(method):
    pred = torch.zeros(1, 1, 2, 3, requires_grad=True)
    reference = torch.full((1, 1, 2, 3), 3.0)
    kept = conserve_mass(pred, reference, SEA, method=method)
    assert kept[..., SEA].tolist() == [[[3, 3, 3, 3]]]
    kept.square().sum().backward()
    assert pred.grad.isfinite().all()


def test_a_reference_without_mass_or_with_a_negative_one():
    pred = torch.tensor([[[1.0, 3.0]]])
    for reference in (torch.zeros(1, 1, 2), torch.tensor([[[-1.0, -2.0]]])):
        assert conserve_mass(pred, reference).tolist() == [[[0, 0]]]
        shifted = conserve_mass(pred, reference, method="shift")
        assert total_mass(shifted).item() == pytest.approx(reference.sum().item())


@BOTH
def test_an_empty_mask_gives_zeros(method):
    nowhere = torch.zeros(2, 3, dtype=torch.bool)
    pred = torch.rand(1, 1, 2, 3, requires_grad=True)
    kept = conserve_mass(pred, torch.ones(1, 1, 2, 3), nowhere, method=method)
    assert (kept == 0).all()
    kept.sum().backward()
    assert (pred.grad == 0).all()


@BOTH
def test_a_nan_shows_where_it_counts_and_only_there(method):
    pred, reference = torch.rand(2, 2, 2, 3), torch.rand(2, 2, 2, 3)
    expected = conserve_mass(pred, reference, SEA, method=method)
    on_land = torch.where(SEA, pred, NAN)
    assert torch.equal(conserve_mass(on_land, reference, SEA, method=method), expected)
    assert torch.equal(total_mass(on_land, SEA), total_mass(pred, SEA))
    for broken in (pred.clone(), reference.clone()):
        broken[1, 0, 0, 0] = NAN
        assert total_mass(broken, SEA).isnan().tolist() == [[False, False], [True, False]]
    pred[1, 0, 0, 0] = NAN
    kept = conserve_mass(pred, reference, SEA, method=method)
    assert kept[1, 0][SEA].isnan().any()
    assert not kept[0].isnan().any()
    assert not kept[1, 1].isnan().any()
    assert not torch.isnan(kept[..., ~SEA]).any()


def test_nan_on_land_gives_no_nan_to_the_gradient():
    pred = torch.tensor([[[1.0, NAN, 2.0]]], requires_grad=True)
    mask = torch.tensor([True, False, True])
    conserve_mass(
        pred, torch.ones(1, 1, 3), mask, torch.tensor([1.0, NAN, 1.0])
    ).square().sum().backward()
    assert pred.grad.isfinite().all()


def test_the_error_is_signed_and_clips_negative_predictions():
    true = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert mass_error(torch.tensor([[[1.0, 0.0, -4.0]]]), true).item() == -1
    assert mass_error(torch.tensor([[[2.0, 1.0, 0.0]]]), true, cell_area=3.0).item() == 3


def test_the_loss_is_the_difference_of_masses():
    pred, true = torch.randn(3, 2, 2, 3), torch.randn(3, 2, 2, 3)
    area = torch.rand(2, 3)
    each = ((pred - true) * area)[..., SEA].sum(-1).abs()
    for reduction, expected in [("none", each), ("mean", each.mean()), ("sum", each.sum())]:
        loss = MassConservationLoss(SEA, area, reduction)
        torch.testing.assert_close(loss(pred, true), expected)
    assert MassConservationLoss(cell_area=2.0)(true, true) == 0
    assert not MassConservationLoss(SEA, area).state_dict()


def grow(x):
    """A model that increases the density depending on the field."""
    return x[:, :1] + x[:, 1:2]


def test_a_rollout_feeds_predictions_back_with_the_fields_of_each_step():
    start = torch.zeros(2, 1, 4)
    fields = torch.arange(1.0, 6.0).view(1, 5, 1, 1).expand(2, 5, 3, 4)
    maps = rollout(grow, start, fields, 4)
    assert maps.shape == (2, 4, 4)
    assert maps[0, :, 0].tolist() == [1, 3, 6, 10]
    same = rollout(grow, start, fields[:, 0], 3)
    assert same[1, :, 2].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "conserve", ["scale", "shift", partial(conserve_mass, mask=SEA)], ids=["scale", "shift", "own"]
)
def test_a_rollout_keeps_the_mass_of_the_start(conserve):
    start = torch.rand(2, 1, 2, 3)
    maps = rollout(grow, start, torch.rand(2, 3, 2, 2, 3), 3, conserve)
    mask = SEA if callable(conserve) else None
    for step in range(3):
        torch.testing.assert_close(
            total_mass(maps[:, step : step + 1], mask), total_mass(start, mask)
        )


def test_gradients_go_back_to_the_start():
    start = torch.rand(1, 1, 3, dtype=torch.float64, requires_grad=True)
    fields = torch.rand(1, 2, 1, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rollout(grow, x, fields, 2, "scale"), start)


X = torch.zeros(1, 1, 4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: total_mass(torch.zeros(3, 4)), r"a density \(B, C, \*S\), got shape \(3, 4\)"),
        (lambda: total_mass(X, torch.ones(4)), r"mask must be .* to \(1, 1, 4, 5\), got \(4,\)"),
        (
            lambda: total_mass(X, cell_area=torch.ones(2, 1, 4, 5)),
            r"cell_area must be broadcastable to \(1, 1, 4, 5\), got \(2, 1, 4, 5\)",
        ),
        (lambda: conserve_mass(X, X, method="clip"), r"one of \['scale', 'shift'\], got 'clip'"),
        (lambda: conserve_mass(X, X[..., :4]), r"got \(1, 1, 4, 5\) and \(1, 1, 4, 4\)"),
        (lambda: mass_error(X, X[..., :4]), r"got \(1, 1, 4, 5\) and \(1, 1, 4, 4\)"),
        (lambda: MassConservationLoss(reduction="max"), "reduction must be one of .*, got 'max'"),
        (lambda: MassConservationLoss()(X, X[0]), r"got \(1, 1, 4, 5\) and \(1, 4, 5\)"),
        (
            lambda: rollout(grow, torch.zeros(1, 2, 4), torch.zeros(1, 1, 1, 4), 1),
            r"density must be \(B, 1, \*S\), got shape \(1, 2, 4\)",
        ),
        (
            lambda: rollout(grow, X, torch.zeros(1, 3, 2, 4, 4), 1),
            r"the sizes \(4, 5\) of the density, got \(1, 3, 2, 4, 4\)",
        ),
        (lambda: rollout(grow, X, torch.zeros(1, 3, 2, 4, 5), 4), "steps must be 1 to 3, .* got 4"),
        (lambda: rollout(grow, X, torch.zeros(1, 2, 4, 5), 0), "steps must be 1 to 1, .* got 0"),
        (lambda: rollout(grow, X, torch.zeros(1, 2, 4, 5), 1, "keep"), "conserve must be .*'keep'"),
        (
            lambda: rollout(lambda x: x, X, torch.zeros(1, 2, 4, 5), 1),
            r"got \(1, 3, 4, 5\) and \(1, 1, 4, 5\)",
        ),
    ],
)
def test_every_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["mask", "cell_area"])
@pytest.mark.parametrize("value", [[1.0], "land", np.ones((2, 2)), torch.tensor(1j), {}])
def test_a_mask_or_an_area_that_is_not_a_tensor_raises_with_its_name(name, value):
    x = torch.ones(1, 1, 2, 2)
    for call in (
        total_mass,
        lambda x, **k: conserve_mass(x, x, **k),
        lambda x, **k: mass_error(x, x, **k),
    ):
        with pytest.raises(ValueError, match=f"^{name} must "):
            call(x, **{name: value})
    with pytest.raises(ValueError, match=f"^{name} must "):
        MassConservationLoss(**{name: value})(x, x)


def test_densities_that_are_not_tensors_raise_with_their_name():
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"^x must be a tensor, got \[1\]"):
        total_mass([1])
    with pytest.raises(ValueError, match=r"^pred must be a tensor, got an array of shape"):
        conserve_mass(np.ones((1, 1, 2, 2)), x)
    with pytest.raises(ValueError, match=r"^true must be a tensor, got None"):
        mass_error(x, None)
    with pytest.raises(ValueError, match=r"^x must hold real numbers, got torch.complex64"):
        total_mass(x + 0j)
    with pytest.raises(ValueError, match=r"^what model returns must be a tensor, got None"):
        rollout(lambda y: None, x, torch.ones(1, 2, 1, 2, 2), 2)
    with pytest.raises(ValueError, match=r"^what conserve returns must be a tensor, got None"):
        rollout(lambda y: y[:, :1], x, torch.ones(1, 2, 1, 2, 2), 2, conserve=lambda a, b: None)


def test_a_loss_of_masses_compiles_in_one_piece():
    loss = torch.compile(MassConservationLoss(cell_area=2.0), fullgraph=True, backend="eager")
    assert loss(torch.zeros(1, 1, 3), torch.ones(1, 1, 3)).item() == 6
