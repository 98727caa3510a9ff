"""Hooks, functional_call, parametrizations and sharding work with every faster path."""

import copy

import pytest
import torch
from cases import CASES, Case, as_list, build
from torch import nn
from torch.nn.utils import parametrize

from neurenix_ms.implicit import NIF, LastLayerNIF, MultiScaleNIF
from neurenix_ms.layers.blocks import ConvBlock, ConvNormAct

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.parametrize("block", ["single", "double", "residual"])
@pytest.mark.parametrize("switch", ["own", "pre", "all"])
def test_hooks_run_for_every_call_of_a_convolution_with_norm_and_activation(block, switch):
    network = ConvBlock(3, 4, block=block)
    layers = [m for m in network.modules() if isinstance(m, ConvNormAct)]
    seen: list[nn.Module] = []
    handles = []
    if switch == "all":
        handles = [nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))]
    for layer in layers if switch != "all" else []:
        if switch == "own":
            handles.append(layer.register_forward_hook(lambda m, *_: seen.append(m)))
        else:
            handles.append(layer.register_forward_pre_hook(lambda m, _: seen.append(m)))
    try:
        network(torch.randn(1, 3, 8, 8))
    finally:
        for handle in handles:
            handle.remove()
    assert [m for m in seen if m in layers] == layers


def test_a_hook_that_changes_the_output_changes_the_result():
    network = ConvBlock(3, 4)
    network.layers[0].register_forward_hook(lambda *_: torch.zeros(1, 4, 8, 8))
    expected = network.layers[1](torch.zeros(1, 4, 8, 8))
    assert torch.equal(network(torch.randn(1, 3, 8, 8)), expected)


def test_backward_hooks_run_for_a_convolution_with_norm_and_activation():
    network, seen = ConvBlock(3, 4), []
    for layer in network.layers:
        layer.register_full_backward_hook(lambda *_: seen.append(1))
    network(torch.randn(1, 3, 8, 8)).sum().backward()
    assert len(seen) == 2


@EVERY
def test_every_submodule_with_parameters_is_called_or_its_parameters_are_used_by_its_parent(
    case: Case,
):
    """What `fully_shard` of a submodule and hooks on it rely on."""
    model = build(case)
    model.train(getattr(model, "deep_supervision", False))  # whose heads are of training alone
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda m, *_: called.add(m)) for m in model.modules()]
    with torch.no_grad():
        model(case.inputs(case.size(16)))
    for handle in handles:
        handle.remove()
    owners = {m for m in model.modules() if list(m.parameters(recurse=False))}
    assert owners <= called


class Doubled(nn.Module):
    """Twice the weight."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@EVERY
def test_a_parametrized_weight_is_the_one_that_is_used(case: Case):
    model = build(case).eval()
    weights = [m for m in model.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    if not weights:
        return
    x = case.inputs(case.size(16))
    with torch.no_grad():
        for module in weights:
            module.weight.mul_(2)
        expected = model(x)
        for module in weights:
            module.weight.div_(2)
        for module in weights:
            parametrize.register_parametrization(module, "weight", Doubled())
        for y, wanted in zip(as_list(model(x)), as_list(expected), strict=True):
            torch.testing.assert_close(y, wanted, atol=1e-4, rtol=1e-4)


IMPLICIT = {
    "NIF": lambda: NIF(1, 2, shape_width=4, parameter_width=4),
    "MultiScaleNIF": lambda: MultiScaleNIF(1, 2, shape_width=4, parameter_width=4),
    "LastLayerNIF": lambda: LastLayerNIF(1, 2, shape_width=4, parameter_act="sine", latent_dim=3),
}


@pytest.mark.parametrize("name", IMPLICIT)
def test_linear_layers_of_implicit_models_are_called_or_raise(name):
    model = IMPLICIT[name]()
    p, x = torch.rand(5, 1), torch.rand(5, 2)
    expected = model(p, x)
    called: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_hook(lambda m, *_: called.add(m))
    torch.testing.assert_close(model(p, x), expected)
    linear = {m for m in model.modules() if isinstance(m, nn.Linear)}
    assert linear - called <= ({model.last} if name != "LastLayerNIF" else set())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_models_are_quantized_or_raise(name):
    model = IMPLICIT[name]().eval()
    p, x = torch.rand(5, 1), torch.rand(5, 2)
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    if name == "LastLayerNIF":
        assert (small(p, x) - model(p, x)).abs().max() < 0.1
    else:
        with pytest.raises(ValueError, match="leave the model out of quantization"):
            small(p, x)


def test_a_layer_sharded_by_itself_raises():
    class Sharded(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            return self

    model = NIF(1, 2, shape_width=4, parameter_width=4)
    del model.last.weight
    model.last.weight = torch.zeros(model.last.out_features, 1).as_subclass(Sharded)
    with pytest.raises(ValueError, match="call fully_shard on the model"):
        model(torch.rand(5, 1), torch.rand(5, 2))
