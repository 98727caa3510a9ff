"""Densified models: the same field, with frequencies that are sums."""

import pytest
import torch

from neurenix_ms.files import load, save
from neurenix_ms.implicit import (
    NIF,
    LastLayerNIF,
    MultiScaleNIF,
    Normalizer,
    compact,
    densify,
    prune_nodes,
)
from neurenix_ms.implicit.pruning import node_scores


def model(**options):
    torch.manual_seed(0)
    return MultiScaleNIF(2, 3, shape_width=6, parameter_width=4, latent_dim=2, **options).double()


P, X = torch.rand(7, 2, dtype=torch.float64), torch.rand(11, 3, dtype=torch.float64)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_field_stays_the_same(blocks, pruned):
    field = model(residual_blocks=blocks)
    if pruned:
        prune_nodes(field, 0.5, P, scope="layer")
        field = compact(field)
    widths = field.node_mask.sum(1).tolist()
    wide = densify(field, 4, P)
    assert wide.node_mask.sum(1).tolist() == [widths[0] + 4, *widths[1:]]
    torch.testing.assert_close(wide.forward_grid(P, X), field.forward_grid(P, X))
    torch.testing.assert_close(wide(P, X[:7]), field(P, X[:7]))


def test_new_frequencies_are_sums_of_the_most_important_ones_for_every_parameter():
    field = model()
    scores = node_scores(field, P)[0]
    first, second = scores.argsort(descending=True)[:2].tolist()
    wide = densify(field, 2, P)
    matrices, biases = wide.shape.slices()
    weights = wide.weights(P)
    frequencies = weights[:, matrices[0]].view(7, *wide.shape.sizes[0])
    phases = weights[:, biases[0]]
    for new, other in ((6, first), (7, second)):  # twice the most important, then its sum
        for values in (frequencies, phases):
            torch.testing.assert_close(values[..., new], values[..., first] + values[..., other])


def test_new_nodes_are_trained():
    wide = densify(model(), 3, P)
    before = wide.forward_grid(P, X)
    optimizer = torch.optim.SGD(wide.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        wide.forward_grid(P, X).square().mean().backward()
        optimizer.step()
    matrices, _ = wide.shape.slices()
    outgoing = wide.table()[:, matrices[1]].view(3, *wide.shape.sizes[1])[:, -3:]
    assert (outgoing != 0).all()
    assert not torch.equal(wide.forward_grid(P, X), before)


def test_scales_are_kept_and_the_result_is_saved_pruned_and_densified_again(tmp_path):
    field = Normalizer(model()).double().fit(5 * P, X, torch.randn(7, 11, 1).double())
    state = {name: value.clone() for name, value in field.state_dict().items()}
    wide = densify(field, 5, 5 * P)
    torch.testing.assert_close(wide.forward_grid(5 * P, X), field.forward_grid(5 * P, X))
    assert all(torch.equal(value, field.state_dict()[name]) for name, value in state.items())
    save(wide.float(), tmp_path / "a.nx")
    again = load(tmp_path / "a.nx")
    prune_nodes(again, 0.4, 5 * P.float(), scope="layer")
    small = compact(again)
    more = densify(small, 2, 5 * P.float())
    torch.testing.assert_close(
        more.forward_grid(5 * P.float(), X.float()), small.forward_grid(5 * P.float(), X.float())
    )


def masked():
    field = model()
    prune_nodes(field, 0.5, P)
    return field


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: densify(model(), 0, P), "num_nodes must be at least 1, got 0"),
        (
            lambda: densify(model(), 22, P),
            "num_nodes must be at most 21, the number of sums of two of 6 nodes, got 22",
        ),
        (
            lambda: densify(NIF(1, 1), 1, torch.rand(3, 1)),
            "model must be a MultiScaleNIF, whose first layer has frequencies, got NIF",
        ),
        (
            lambda: densify(LastLayerNIF(1, 1), 1, torch.rand(3, 1)),
            "model must be a NIF or MultiScaleNIF",
        ),
        (
            lambda: densify(masked(), 1, P),
            "pruned nodes must be removed by compact first, got a model with a mask",
        ),
        (
            lambda: densify(model(), 1, P[:0]),
            "parameters must be a sample of one or more, got 0",
        ),
        (lambda: densify(model(), 1, P[:, :1]), r"parameters must have shape \(N, 2\)"),
    ],
    ids=range(7),
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
