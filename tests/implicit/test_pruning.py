"""Pruning against its definition, and compact models against masked ones."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from implicit_cases import WRITTEN, build
from sizes_for import dims_and_sizes  # noqa: F401  the profile of the suite
from torch import nn

from neurenix_ms import load, save
from neurenix_ms.implicit import (
    NIF,
    LastLayerNIF,
    MultiScaleNIF,
    Normalizer,
    PruningSchedule,
    compact,
    gradient,
    prune_and_retrain,
    prune_nodes,
    sparsity,
)
from neurenix_ms.meter import count_flops, parameter_table, peak_tensor_bytes

CRITERIA = ["l2", "contribution"]
SCOPES = ["global", "layer"]
P, X = torch.rand(6, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b)


@given(
    kind=st.sampled_from(WRITTEN),
    width=st.integers(1, 9),
    depth=st.integers(1, 3),
    shares=st.lists(st.floats(0, 0.99), min_size=1, max_size=3),
    criterion=st.sampled_from(CRITERIA),
    scope=st.sampled_from(SCOPES),
    seed=st.integers(0, 99),
)
def test_a_compact_model_equals_the_masked_one(kind, width, depth, shares, criterion, scope, seed):
    torch.manual_seed(seed)
    model = build(kind, shape_width=width, shape_depth=depth).double()
    for share in sorted(shares):
        prune_nodes(model, share, P, criterion, scope)
        before = copy.deepcopy(model.state_dict())
        small = compact(model)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        close(small.forward_grid(P, X), model.forward_grid(P, X))
        close(small(P[:5], X), model(P[:5], X))
        close(small.at(P[0])(X), model.at(P[0])(X))
        close(gradient(small, P[:5], X), gradient(model, P[:5], X))
        assert [len(units) for units in small.shape.nodes] == model.node_mask.sum(1).tolist()
        assert sparsity(small) == 0
        close(compact(small).forward_grid(P, X), small.forward_grid(P, X))


@given(
    kind=st.sampled_from(WRITTEN),
    share=st.floats(0, 0.8),
    criterion=st.sampled_from(CRITERIA),
    seed=st.integers(0, 99),
)
def test_a_compact_model_can_be_pruned_again(kind, share, criterion, seed):
    torch.manual_seed(seed)
    model = build(kind, shape_width=9, shape_depth=3).double()
    prune_nodes(model, share, P, criterion)
    small = compact(model)
    prune_nodes(small, 0.5, P, criterion)
    total = sum(map(len, small.shape.nodes))
    most = total - len(small.shape.nodes)
    assert int(small.node_mask.sum()) == total - min(round(0.5 * total), most)
    close(compact(small).forward_grid(P, X), small.forward_grid(P, X))


def by_hand(model, criterion):
    """Norms of all nodes of a network without shortcuts, from all weights of all parameters."""
    weights = model.weights(P)
    matrices, _ = model.shape.slices()
    sizes = model.shape.sizes
    squares = [
        weights[:, m].view(-1, *size).square() for m, size in zip(matrices, sizes, strict=True)
    ]
    norms = []
    for layer in range(len(sizes) - 1):
        incoming = squares[layer].sum(1).mean(0).sqrt()
        outgoing = squares[layer + 1].sum(2).mean(0).sqrt()
        norms.append(incoming * outgoing if criterion == "contribution" else incoming)
    return torch.stack(norms)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_the_smallest_nodes_go_first(criterion, share):
    options = {"shape_width": 20, "coordinate_dim": 20, "weight_init_factor": 3.0}
    model = build("MultiScaleNIF", **options).double()
    norms = by_hand(model, criterion)
    prune_nodes(model, share, P, criterion)
    count = round(share * 60)
    assert model.node_mask.shape == (3, 20)
    assert int((~model.node_mask).sum()) == count
    assert sparsity(model) == pytest.approx(count / 60)
    assert norms[~model.node_mask].max() <= norms[model.node_mask].min()


def test_with_shortcuts_all_later_layers_read_a_node():
    model = build("NIF", shape_width=4).double()
    weights = model.weights(P)
    matrices, _ = model.shape.slices()
    w = [weights[:, m].view(-1, *size) for m, size in zip(matrices, model.shape.sizes, strict=True)]
    mean = [v.square().mean(0) for v in w]
    outgoing = [
        sum(m.sum(1) for m in mean[i + 1 :]) for i in range(3)
    ]  # unit j is row j of every later matrix
    expected = torch.stack(
        [(m.sum(0) * out).sqrt() for m, out in zip(mean[:3], outgoing, strict=True)]
    )
    prune_nodes(model, 0.25, P, "contribution")
    assert int((~model.node_mask).sum()) == 3
    assert expected[~model.node_mask].max() <= expected[model.node_mask].min()


@pytest.mark.parametrize("kind", WRITTEN)
def test_pruned_nodes_get_zero_weights_and_give_zero(kind):
    model = build(kind).double()
    prune_nodes(model, 0.6, P)
    matrices, biases = model.shape.slices()
    weights = model.weights(P)
    for layer, alive in enumerate(model.node_mask):
        matrix = weights[:, matrices[layer]].unflatten(1, model.shape.sizes[layer])
        assert (matrix[:, :, ~alive] == 0).all()
        assert (weights[:, biases[layer]][:, ~alive] == 0).all()
        assert (matrix[:, :, alive] != 0).all()
    assert (model.output_mask[matrices[-1]] == 1).all()
    assert (model.output_mask[biases[-1]] == 1).all()


def test_a_shortcut_goes_on_around_a_pruned_node():
    model = NIF(1, 1, shape_width=3, shape_depth=1).double()
    with torch.no_grad():
        model.last.weight.zero_()
        matrices, _ = model.shape.slices()
        model.last.bias[matrices[1]] *= 1e-3  # the hidden layer's nodes are the smallest
    prune_nodes(model, 0.34, torch.rand(3, 1).double())
    assert model.node_mask.sum(1).tolist() == [3, 1]
    x = torch.rand(4, 1).double()
    fixed = model.at(torch.zeros(1).double())
    first = nn.functional.silu(x @ fixed.matrix_0 + fixed.bias_0)
    second = nn.functional.silu(first @ fixed.matrix_1 + fixed.bias_1)
    assert (second != 0).any(0).sum() == 1
    close(fixed(x), (first + second) @ fixed.matrix_2 + fixed.bias_2)


def test_a_layer_keeps_its_largest_node_and_another_layer_gives_one_more():
    model = build("MultiScaleNIF", shape_width=6).double()
    matrices, _ = model.shape.slices()
    with torch.no_grad():
        for value in (model.last.weight, model.last.bias):
            value[matrices[1]] *= 1e-6  # all of the second layer is smaller than the rest
    norms = by_hand(model, "l2")
    prune_nodes(model, 8 / 18, P)
    alive = model.node_mask.sum(1).tolist()
    assert alive[1] == 1
    assert sum(alive) == 10
    assert model.node_mask[1, norms[1].argmax()]
    prune_nodes(model, 0.99, P)
    assert model.node_mask.sum(1).tolist() == [1, 1, 1]


@given(
    kind=st.sampled_from(WRITTEN),
    width=st.integers(1, 12),
    shares=st.lists(st.floats(0, 0.99), min_size=1, max_size=3),
    criterion=st.sampled_from(CRITERIA),
    seed=st.integers(0, 99),
)
def test_by_layer_every_layer_loses_the_same_share(kind, width, shares, criterion, seed):
    torch.manual_seed(seed)
    model = build(kind, shape_width=width, shape_depth=2).double()
    for share in sorted(shares):
        prune_nodes(model, share, P, criterion, "layer")
        left = max(1, width - round(share * width))
        assert model.node_mask.sum(1).tolist() == [left] * len(model.node_mask)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_by_layer_the_smallest_of_each_layer_go(criterion):
    model = build("MultiScaleNIF", shape_width=20).double()
    norms = by_hand(model, criterion)
    prune_nodes(model, 0.8, P, criterion, "layer")
    for norm, alive in zip(norms, model.node_mask, strict=True):
        assert int(alive.sum()) == 4
        assert norm[~alive].max() <= norm[alive].min()


def test_a_layer_that_has_lost_more_already_is_not_pruned_by_less():
    model = build("MultiScaleNIF", shape_width=10).double()
    matrices, _ = model.shape.slices()
    with torch.no_grad():
        for value in (model.last.weight, model.last.bias):
            value[matrices[1]] *= 1e-6
    prune_nodes(model, 0.2, P)
    before = model.output_mask.clone()
    words = r"at least 0\.6, as 6 of 10 nodes of layer 1 are pruned already, got 0\.5"
    with pytest.raises(ValueError, match=words):
        prune_nodes(model, 0.5, P, scope="layer")
    assert torch.equal(model.output_mask, before)  # nor any other layer
    prune_nodes(model, 0.7, P, scope="layer")
    assert model.node_mask.sum(1).tolist() == [3, 3, 3]


def test_what_is_off_stays_off_and_is_not_trained():
    model = build("MultiScaleNIF-blocks").double()
    prune_nodes(model, 0.3, P)
    first = model.node_mask.clone()
    model(P[:5], X).square().mean().backward()
    off = model.output_mask == 0
    assert (model.last.bias.grad[off] == 0).all()
    assert (model.last.weight.grad[off] == 0).all()
    prune_nodes(model, 0.6, P)
    assert not (model.node_mask & ~first).any()
    assert sparsity(model) == pytest.approx(0.6, abs=0.02)
    with pytest.raises(ValueError, match=r"at least 0\.6.* nodes are pruned already, got 0\.2"):
        prune_nodes(model, 0.2, P)


@pytest.mark.parametrize("kind", ["NIF", "MultiScaleNIF", "MultiScaleNIF-blocks"])
def test_a_compact_model_is_smaller_and_does_less(kind):
    model = build(kind, shape_width=40, shape_depth=3)
    p, x = P.float(), torch.rand(200, 2)
    prune_nodes(model, 0.7, p)
    small = compact(model)
    with torch.no_grad():
        costs = [
            (
                parameter_table(m)[-1][1],
                count_flops(lambda m=m: m.forward_grid(p, x)),
                peak_tensor_bytes(lambda m=m: m.forward_grid(p, x)),
            )
            for m in (model, small)
        ]
    (parameters, operations, peak), (fewer, less, lower) = costs
    assert fewer < parameters / 2
    assert less < operations / 2
    assert lower < peak


@pytest.mark.parametrize("kind", WRITTEN)
def test_masked_and_compact_models_come_back_from_files(kind, tmp_path):
    model = build(kind)
    p, x = P.float(), X.float()
    prune_nodes(model, 0.5, p)
    small = compact(model)
    prune_nodes(small, 0.2, p)
    for one in (model, small, compact(small)):
        save(one, tmp_path / "m.nx")
        again = load(tmp_path / "m.nx")
        assert torch.equal(again.forward_grid(p, x), one.forward_grid(p, x))
        assert torch.equal(again.node_mask, one.node_mask)
    training = compact(model)
    training.forward_grid(p, x).square().mean().backward()
    assert all(q.grad is not None for q in training.parameters())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_normalized_field_is_pruned_in_its_own_units(criterion):
    field = Normalizer(build("MultiScaleNIF")).double()
    p, x = 100 * P, 1e-3 * X
    field.fit(p, x, torch.randn(6, 5, 2, dtype=torch.float64))
    twin = copy.deepcopy(field.model)
    prune_nodes(field, 0.5, p, criterion)
    prune_nodes(twin, 0.5, field.scaled("p", p), criterion)
    assert torch.equal(field.model.node_mask, twin.node_mask)
    assert sparsity(field) == sparsity(twin)
    small = compact(field)
    assert type(small) is Normalizer
    close(small.forward_grid(p, x), field.forward_grid(p, x))
    assert small.method == field.method


def test_rounds_train_prune_and_retrain():
    model = build("NIF")
    seen = []

    def fit(one):
        assert one is model
        seen.append(sparsity(one))
        return float(len(seen))

    rounds = prune_and_retrain(model, fit, PruningSchedule(0.2, 0.8, 3), P.float())
    assert seen == pytest.approx([0, 0.2, 0.5, 0.8], abs=0.03)
    assert [one.sparsity for one in rounds] == seen
    assert [one.error for one in rounds] == [1, 2, 3, 4]
    assert list(PruningSchedule(0.3, 0.3, 1)) == [0.3]
    model = build("NIF", shape_width=10)
    schedule = PruningSchedule(0.2, 0.8, 3)
    prune_and_retrain(model, lambda one: 0.0, schedule, P.float(), "contribution", "layer")
    assert model.node_mask.sum(1).tolist() == [2] * len(model.node_mask)


@pytest.mark.slow
def test_retraining_brings_a_pruned_field_back():
    torch.manual_seed(1)
    model = NIF(1, 1, shape_width=12)
    t, x = torch.linspace(-1, 1, 5)[:, None], torch.linspace(-1, 1, 20)[:, None]
    u = torch.sin(2 * x.mT + t)[..., None]

    def fit(one):
        optimizer = torch.optim.LBFGS(one.parameters(), max_iter=150, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = (one.forward_grid(t, x) - u).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return closure().sqrt().item()

    first, *_, last = prune_and_retrain(model, fit, PruningSchedule(0.3, 0.6, 2), t)
    assert last.sparsity == pytest.approx(0.6, abs=0.02)
    assert first.error < 0.05
    assert last.error < 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: prune_nodes(build("NIF"), 1.0, P), r"sparsity must lie in \[0, 1\), got 1.0"),
        (lambda: prune_nodes(build("NIF"), -0.1, P), r"sparsity must lie in \[0, 1\), got -0.1"),
        (
            lambda: prune_nodes(build("NIF"), float("nan"), P),
            "sparsity must be a finite number, got nan",
        ),
        (
            lambda: prune_nodes(build("NIF"), 0.5, P, "l1"),
            r"criterion must be one of \['l2', 'contribution'\], got 'l1'",
        ),
        (
            lambda: prune_nodes(build("NIF"), 0.5, P, scope="local"),
            r"scope must be one of \['global', 'layer'\], got 'local'",
        ),
        (
            lambda: prune_nodes(build("NIF").double(), 0.5, P[:, :1]),
            r"parameters must have shape \(N, 2\) for parameter_dim=2, got shape \(6, 1\)",
        ),
        (
            lambda: prune_nodes(build("NIF"), 0.5, torch.zeros(0, 2)),
            "parameters must be a sample of one or more, got 0",
        ),
        (
            lambda: prune_nodes(NIF(2, 1, act=nn.Sigmoid), 0.5, P),
            "the activation of 0 must be 0, got 0.5 from Sigmoid",
        ),
        (
            lambda: prune_nodes(LastLayerNIF(2, 1), 0.5, P),
            "model must be a NIF or MultiScaleNIF, .* to be pruned, got a module LastLayerNIF",
        ),
        (
            lambda: compact(nn.Linear(1, 1)),
            "model must be a NIF or MultiScaleNIF, .*, got a module Linear",
        ),
        (
            lambda: sparsity(LastLayerNIF(1, 1)),
            "model must be a NIF or MultiScaleNIF, .*, got a module LastLayerNIF",
        ),
        (lambda: PruningSchedule(0.5, 0.2, 3), "0 <= start <= end < 1, got 0.5 and 0.2"),
        (lambda: PruningSchedule(0.5, 1.0, 3), "0 <= start <= end < 1, got 0.5 and 1.0"),
        (lambda: PruningSchedule(0.1, 0.2, 0), "rounds must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_compacted_network_without_residual_blocks_has_no_idle_rows():
    model = MultiScaleNIF(1, 1, shape_width=10)
    prune_nodes(model, 0.5, torch.rand(9, 1))
    a, b, c = model.node_mask.sum(1).tolist()
    assert compact(model).shape.sizes == [(1, a), (a, b), (b, c), (c, 1)]
