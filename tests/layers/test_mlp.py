"""MLPs: closed forms, and the contract of every module for vectors."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurenix_ms._core.config import is_plain
from neurenix_ms.files import load, save
from neurenix_ms.layers.mlp import MLP


def test_it_is_the_stack_of_layers_and_activations_of_torch():
    network = MLP(2, 3, [8, 5], act="tanh")
    first, second, last = network.layers
    twin = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)
    x = torch.randn(7, 2)
    assert torch.equal(network(x), twin(x))


def test_without_hidden_layers_it_is_linear():
    network = MLP(3, 2, [])
    x, y = torch.randn(2, 4, 3)
    torch.testing.assert_close(network(x) - network(y), (x - y) @ network.layers[0].weight.T)


def test_a_shortcut_adds_a_linear_function_of_the_input():
    network = MLP(3, 2, [4], shortcut=True)
    plain = MLP(3, 2, [4])
    plain.load_state_dict(
        {name: value for name, value in network.state_dict().items() if name != "linear.weight"}
    )
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x), plain(x) + x @ network.linear.weight.T)
    assert network.config["shortcut"]


@given(
    hidden=st.lists(st.integers(1, 6), max_size=4),
    batch=st.lists(st.integers(1, 4), max_size=3),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=30, deadline=None)
def test_any_batch_axes_and_any_widths(hidden, batch, sizes):
    network = MLP(*sizes, hidden)
    x = torch.randn(*batch, sizes[0])
    y = network(x)
    assert y.shape == (*batch, sizes[1])
    flat = network(x.reshape(-1, sizes[0])).reshape(y.shape)
    torch.testing.assert_close(y, flat)


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_contract_of_every_module(tmp_path, shortcut):
    network = MLP(2, 3, [4], act="silu", shortcut=shortcut)
    x = torch.randn(5, 2)
    before, expected = x.clone(), network(x)
    assert torch.equal(x, before)
    assert is_plain(network.config)
    assert repr(MLP(**network.config)) == repr(network)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    assert torch.equal(copy.deepcopy(network)(x), expected)
    save(network, tmp_path / "mlp.nx")
    assert torch.equal(load(tmp_path / "mlp.nx")(x), expected)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    strided = torch.randn(2, 5).T
    torch.testing.assert_close(network(strided), network(strided.contiguous()))


def test_gradients_in_float64():
    network = MLP(2, 2, [3], act="tanh").double()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP(0, 1), "in_features must be at least 1, got 0"),
        (lambda: MLP(1, -1), "out_features must be at least 1, got -1"),
        (lambda: MLP(1, 1, [4, 0]), r"every hidden width must be at least 1, got \[4, 0\]"),
        (lambda: MLP(1, 1, act="sine"), "act must be one of .*, got 'sine'"),
        (
            lambda: MLP(2, 1)(torch.zeros(4, 3)),
            r"the last axis must have length 2, got shape \(4, 3\)",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
