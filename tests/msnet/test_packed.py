"""Packed stages without gradients equal the plain stages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import nn

from neurenix_ms.layers.naming import ACTIVATIONS
from neurenix_ms.msnet import MSNet, packed, random_volume


def stage(width=2, in_channels=2, spatial_dims=3, **options) -> nn.Module:
    options = {"num_layers": 3} | options
    return MSNet(1, in_channels, width, spatial_dims=spatial_dims, **options).stages[0]


def plain(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.tail(module.layers(x))


def can_pack(module: nn.Module, x: torch.Tensor) -> bool:
    return packed.can_pack(module.layers, module.tail, x)


def assert_same(module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert can_pack(module, x)
        ours, expected = module(x), plain(module, x)
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@settings(deadline=None, max_examples=40)
@given(
    dims_and_sizes(3, 17),
    st.integers(1, 20),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 2),
)
def test_a_packed_stage_equals_the_plain_one(shape, width, in_channels, kernel_size, out_channels):
    dims, size = shape
    options = {"kernel_size": kernel_size, "out_channels": out_channels, "spatial_dims": dims}
    assert_same(stage(width, in_channels, **options), torch.randn(2, in_channels, *size))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("length", [1, 8, 15, 16, 32])
def test_rows_of_any_length_are_packed(width, length):
    assert_same(stage(width), torch.randn(1, 2, 4, 5, length))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_kernels_of_one_pixel_are_packed(dims):
    options = {"kernel_size": 1, "out_channels": 1, "spatial_dims": dims}
    assert_same(stage(4, 1, **options), torch.randn(2, 1, *[4] * dims))


@pytest.mark.parametrize("act", [name for name in ACTIVATIONS if name])
@pytest.mark.parametrize("norm", ["instance", None])
def test_all_activations_and_no_norm_are_packed(act, norm):
    assert_same(stage(act=act, norm=norm), torch.randn(1, 2, 4, 5, 8))


def test_memory_of_any_order_is_read_and_none_is_written():
    x = torch.randn(2, 2, 6, 7, 8)
    for view in (
        x.contiguous(memory_format=torch.channels_last_3d),
        x.transpose(2, 4),
        x[..., ::2],
    ):
        before = view.clone()
        assert_same(stage(), view)
        assert torch.equal(view, before)


def test_a_large_mean_does_not_reduce_the_precision_of_small_differences():
    module, x = stage(num_layers=2), 1000 + torch.randn(1, 2, 8, 8, 16)
    with torch.no_grad():
        exact = plain(module.double(), x.double())
        module.float()
        errors = [(y - exact).abs().max() for y in (module(x), plain(module, x))]
    assert errors[0] <= 2 * errors[1]


def test_a_network_is_as_exact_as_in_its_plain_form():
    model, x = MSNet(3).eval(), random_volume(32, 3)
    exact = [y.detach() for y in model.double()([s.double() for s in x])]
    with_grad = model.float()(x)
    with torch.no_grad():
        without = model(x)
    for y, reference, truth in zip(without, with_grad, exact, strict=True):
        error = (y - truth).abs().max()
        assert error <= 3 * (reference - truth).abs().max() + 1e-6


def test_samples_of_a_batch_are_normalized_separately():
    module, x = stage(), torch.randn(3, 2, 4, 4, 8) * torch.tensor([1.0, 5, 25]).view(3, 1, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(module(x)[1:2], module(x[1:2]))


@pytest.mark.parametrize(
    "options",
    [
        {"padding_mode": "circular"},
        {"norm": "batch"},
        {"norm": lambda channels: nn.InstanceNorm3d(channels, affine=True)},
        {"norm": lambda channels: nn.InstanceNorm3d(channels, track_running_stats=True)},
        {"act": lambda: nn.PReLU(2)},
        {"act": lambda: nn.Softmax(dim=1)},
    ],
)
def test_what_cannot_be_packed_runs_as_it_is(options):
    module, x = stage(**options), torch.randn(2, 2, 4, 4, 8)
    with torch.no_grad():
        assert not can_pack(module, x)
        module(x)


def test_gradients_hooks_other_types_and_autocast_get_the_plain_form():
    module, x = stage(), torch.randn(1, 2, 4, 4, 8)
    assert not can_pack(module, x)
    with torch.no_grad():
        assert can_pack(module, x)
        assert not can_pack(module, x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not can_pack(module, x)
        seen = []
        handle = module.layers[1].act.register_forward_hook(lambda *_: seen.append(None))
        assert not can_pack(module, x)
        module(x)
        assert seen
        handle.remove()
        assert can_pack(module, x)
        module.layers[0] = nn.Identity()
        assert not can_pack(module, x)


def test_exported_and_traced_stages_hold_the_plain_form():
    module, x = stage().eval(), torch.randn(1, 2, 4, 4, 8)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        assert "banded" not in program.graph_module.code
        assert "update_stats" not in program.graph_module.code
        assert torch.equal(program.module()(x), plain(module, x))
        assert torch.equal(torch.jit.trace(module, x)(x), plain(module, x))


def test_global_hooks_run_for_the_calls_inside_a_stage():
    module, seen = stage(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda called, *_: seen.append(type(called).__name__)
    )
    try:
        with torch.no_grad():
            module(torch.randn(1, 2, 4, 5, 8))
    finally:
        handle.remove()
    assert seen.count("ConvNormAct") == 3
    assert seen.count("Conv3d") == 4


def test_a_forward_replaced_on_an_inner_layer_is_called():
    module, x = stage(), torch.randn(1, 2, 4, 5, 8)
    module.layers[1].conv.forward = torch.zeros_like
    with torch.no_grad():
        assert torch.equal(module(x), plain(module, x))
        assert not can_pack(module, x)


def test_vmap_and_functional_call_use_the_given_weights():
    module, x = stage(), torch.randn(3, 1, 2, 4, 5, 8)
    other = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    with torch.no_grad():
        mapped = torch.vmap(module)(x)
        torch.testing.assert_close(mapped, torch.stack([plain(module, y) for y in x]))
        called = torch.func.functional_call(module, other, (x[0],))
        module.load_state_dict(other)
        torch.testing.assert_close(called, plain(module, x[0]), atol=2e-5, rtol=2e-5)
