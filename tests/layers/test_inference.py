"""Norm and activation without autograd equal those of the modules, and are called where they must be."""

import copy

import pytest
import torch
from torch import nn

from neurenix_ms import FeatureFusion, UNet
from neurenix_ms._core.dims import BATCH_NORMS
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.inference import IN_PLACE, finished, is_inference
from neurenix_ms.layers.naming import ACTIVATIONS, make_act, make_norm
from neurenix_ms.meter import peak_tensor_bytes


def with_statistics(norm: nn.Module) -> nn.Module:
    """Return the norm with other values than those of a new one."""
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", None], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_values_are_those_of_the_modules_to_the_last_bit(dims, norm, act, training):
    modules = [with_statistics(make_norm(norm, 4, dims)).train(training), make_act(act)]
    others = copy.deepcopy(modules)
    y = torch.randn(2, 4, *(5, 4, 3)[:dims])
    with torch.no_grad():
        wanted = others[1](others[0](y.clone()))
        assert torch.equal(finished(*modules, y), wanted)
    for value, other in zip(modules[0].buffers(), others[0].buffers(), strict=True):
        assert torch.equal(value, other)


def test_a_norm_without_running_statistics_uses_those_of_the_batch():
    norm = nn.BatchNorm1d(3, track_running_stats=False).eval()
    y = torch.randn(2, 3, 7)
    with torch.no_grad():
        assert torch.equal(finished(norm, nn.Identity(), y), norm(y))


def test_every_activation_in_place_is_one_that_a_name_makes():
    assert set(IN_PLACE) < {type(make()) for make in ACTIVATIONS.values()}


class Keeping(nn.Module):
    """A norm that keeps its result, which an activation in place would change."""

    def forward(self, x):
        self.kept = x + 1
        return self.kept


def test_the_result_of_a_norm_of_the_user_is_not_overwritten():
    layer = ConvNormAct(1, 4, norm=lambda n: Keeping())
    with torch.no_grad():
        y = layer(torch.randn(1, 1, 8, 8))
    assert layer.norm.kept.min() < 0 <= y.min()


@pytest.mark.parametrize("name", ["conv", "norm", "act"])
def test_hooks_of_every_step_see_their_call(name):
    layer = ConvNormAct(2, 2).eval()
    seen = []
    getattr(layer, name).register_forward_hook(lambda module, x, y: seen.append(y.clone()))
    with torch.no_grad():
        layer(torch.randn(1, 2, 5, 5))
    assert len(seen) == 1


def test_a_hook_of_the_norm_sees_what_the_activation_does_not_change():
    layer = ConvNormAct(2, 2).eval()
    seen = []
    layer.norm.register_forward_hook(lambda module, x, y: seen.append(y))
    with torch.no_grad():
        y = layer(torch.randn(1, 2, 5, 5))
    assert seen[0].min() < 0 <= y.min()


def test_a_graph_a_trace_and_a_function_mode_get_the_calls_of_the_modules():
    x = torch.randn(1, 2, 5, 5)
    assert not is_inference(x)
    with torch.no_grad():
        assert is_inference(x)
        with torch.overrides.BaseTorchFunctionMode():
            assert not is_inference(x)
        assert not is_inference(torch.masked.as_masked_tensor(x, x > 0))


@pytest.mark.parametrize("grad", [True, False], ids=["graph", "inference"])
def test_the_network_gives_the_same_with_and_without_a_graph(grad):
    torch.manual_seed(0)
    model = UNet(2, 1, [4, 8], spatial_dims=1).eval()
    x = torch.randn(2, 2, 37)
    wanted = model(x)
    with torch.set_grad_enabled(grad):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("sizes", [((8, 6), (4, 3)), ((8, 6), (8, 6))], ids=["pyramid", "equal"])
def test_fusion_gives_the_same_with_and_without_a_graph(sizes):
    fuse = FeatureFusion([3, 5], 4).eval()
    features = [torch.randn(2, n, *size) for n, size in zip((3, 5), sizes, strict=True)]
    wanted = fuse(features)
    with torch.no_grad():
        assert torch.equal(fuse(features), wanted)


def test_hooks_of_the_resampling_see_every_feature_map():
    fuse = FeatureFusion([3, 3], 4).eval()
    seen = []
    fuse.fuse[0].conv.resize.register_forward_hook(lambda module, x, y: seen.append(y.shape))
    with torch.no_grad():
        fuse([torch.randn(1, 3, 8, 6), torch.randn(1, 3, 8, 6)])
    assert len(seen) == 2


@pytest.mark.parametrize("dims", BATCH_NORMS)
def test_an_activation_in_place_needs_no_memory(dims):
    y = torch.randn(1, 4, *(64, 16, 8)[:dims])
    modules = nn.Identity(), nn.ReLU()
    with torch.no_grad():
        assert peak_tensor_bytes(lambda: finished(*modules, y)) == 0
