"""Nested U-Nets against their equation, at every size, pruned, checkpointed and in tiles."""

import copy

import pytest
import torch
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor, nn

from neurenix_ms import NestedUNet, NestedUNetDecoder, UNet, enable_gradient_checkpointing
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms.backbones import Backbone
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.training import DeepSupervisionLoss


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(0.2 * torch.rand_like(value))
    return model.double().eval()


def by_equation(model: NestedUNet, x: Tensor) -> list[Tensor]:
    """Equation 1: node (i, j) is a block over all nodes (i, k < j) and the upsampled (i + 1, j - 1)."""
    depth = len(model.features)
    node = {}
    for i in range(depth + 1):
        node[i, 0] = model.encoder.blocks[i](x)
        if i < depth:
            x = model.encoder.downs[i](node[i, 0])
    for j in range(1, depth + 1):  # column by column
        for i in range(depth + 1 - j):
            part = model.nodes.rows[i][j - 1]
            row = [node[i, k] for k in range(j)]
            up = fit(part.up(node[i + 1, j - 1]), spatial(row[0]))
            node[i, j] = part.block(torch.cat([*row, up], dim=1))
    return [head(node[0, j]) for j, head in enumerate(model.branches.heads, start=1)]


@given(dims_and_sizes(8, 19))
@pytest.mark.slow
def test_outputs_are_those_of_the_equation_at_every_size(shape):
    dims, size = shape
    model = NestedUNet(2, 3, [2, 3, 4], spatial_dims=dims, deep_supervision=True)
    model = scrambled(model)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    wanted = by_equation(model, x)
    torch.testing.assert_close(model(x), wanted[-1])
    torch.testing.assert_close([model.pruned(n)(x) for n in (1, 2, 3)], wanted)
    model.branches.ensemble = True
    torch.testing.assert_close(model(x), sum(wanted) / 3)
    copied = copy.deepcopy(model).train()
    torch.testing.assert_close(model.train()(x), by_equation(copied, x)[::-1])


def test_one_level_is_a_unet_of_one_level():
    nested = scrambled(NestedUNet(1, 2, [4], up="transposed"))
    unet = UNet(1, 2, [4], bilinear=False, conv_bias=None).double().eval()
    names = [n for n in unet.state_dict() if "encode" in n and "inner" not in n]
    names += [n for n in unet.state_dict() if "inner" in n]
    names += [n for n in unet.state_dict() if "decode" in n or "head" in n]
    unet.load_state_dict(dict(zip(names, nested.state_dict().values(), strict=True)))
    x = torch.randn(1, 1, 9, 13, dtype=torch.float64)
    torch.testing.assert_close(nested(x), unet(x))


def test_the_decoder_over_the_encoder_is_the_network():
    model = scrambled(NestedUNet(2, 1, [3, 4, 5], norm="group"))
    decoder = NestedUNetDecoder([3, 4, 5, 10], 1, norm="group").double()
    decoder.nodes, decoder.branches = model.nodes, model.branches
    x = torch.randn(1, 2, 21, 18, dtype=torch.float64)
    torch.testing.assert_close(decoder(model.forward_features(x)), model(x))
    names = dict(zip("abcd", model.forward_features(x), strict=True))
    torch.testing.assert_close(decoder(names), model(x))
    backbone = Backbone(model.float())
    assert backbone.channels == [3, 4, 5, 10]
    assert NestedUNetDecoder(backbone, 1)(backbone(x.float())).shape == (1, 1, 21, 18)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    model = NestedUNet(
        1, 1, [2, 2], spatial_dims=dims, norm="group", act="tanh", deep_supervision=True
    ).double()
    x = torch.randn(1, 1, *(5, 4, 4)[:dims], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: tuple(model(y)), x)


def test_the_weights_of_deep_supervision_are_largest_for_the_whole_network():
    model = NestedUNet(1, 1, [4, 4, 4], deep_supervision=True)
    x, target = torch.randn(2, 1, 24, 16), torch.rand(2, 1, 24, 16)
    mse = nn.MSELoss()
    losses = [mse(y, target) for y in copy.deepcopy(model)(x)]
    loss = DeepSupervisionLoss(mse)(model(x), target)
    torch.testing.assert_close(loss, (4 * losses[0] + 2 * losses[1] + losses[2]) / 7)


def test_a_pruned_network_keeps_what_was_chosen_for_its_levels():
    model = NestedUNet(
        1,
        1,
        [4, 6, 8],
        block=["single", "double", "residual", "single"],
        stride=[[1, 2], 2, 2],
        up=["nearest", "linear", "transposed"],
        depth=[1, 2, 1, 1],
        deep_supervision=True,
    )
    state = torch.random.get_rng_state()
    smaller = model.pruned(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert smaller.config["block"] == ["single", "double", "residual"]
    assert smaller.config["stride"] == [[1, 2], 2]
    assert smaller.bottleneck_channels == 8
    x = torch.randn(2, 1, 9, 13)
    torch.testing.assert_close(smaller(x), copy.deepcopy(model)(x)[1:])
    before = smaller.state_dict()["branches.heads.0.conv.weight"].clone()
    with torch.no_grad():
        model.branches.heads[0].conv.weight.add_(1)
    assert torch.equal(smaller.state_dict()["branches.heads.0.conv.weight"], before)


def test_checkpointing_changes_no_gradient_and_needs_less_memory():
    model = NestedUNet(1, 1, [8, 8, 8], deep_supervision=True)
    x = torch.randn(1, 1, 48, 40)

    def step(enabled: bool) -> list[Tensor]:
        other = copy.deepcopy(model)
        with enable_gradient_checkpointing(enabled):
            loss = sum(y.square().mean() for y in other(x))
        return list(torch.autograd.grad(loss, list(other.parameters())))

    for a, b in zip(step(False), step(True), strict=True):
        assert torch.equal(a, b)
    plain, spared = (peak_tensor_bytes(lambda on=on: step(on)) for on in (False, True))
    assert spared < 0.7 * plain


@pytest.mark.parametrize("norm", [pytest.param(None, marks=pytest.mark.slow), "instance"])
@pytest.mark.parametrize("dims", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_in_tiles_it_is_the_whole(dims, norm):
    model = scrambled(NestedUNet(1, 2, [2, 3], spatial_dims=dims, norm=norm))
    x = torch.randn(1, 1, *(75, 44)[:dims], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(TiledModel(model, 24, spatial_dims=dims)(x), model(x))


@pytest.mark.parametrize("norm", ["group", pytest.param("batch", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_gradients_in_tiles_are_those_of_the_whole(norm):
    model = NestedUNet(1, 1, [4, 4], norm=norm).double()
    x, target = torch.randn(2, 2, 1, 40, 36, dtype=torch.float64)
    whole = copy.deepcopy(model)
    loss = nn.functional.mse_loss(whole(x), target)
    loss.backward()
    found = accumulate_gradients(model, x, target, nn.functional.mse_loss, 16)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), loss.detach())
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NestedUNet(1, 1, []), "features must hold at least one width"),
        (lambda: NestedUNet(1, 0), "out_channels must be at least 1, got 0"),
        (lambda: NestedUNet(1, 1, [4], bottleneck_channels=0), "bottleneck_channels must be at"),
        (lambda: NestedUNet(1, 1, [4], ensemble=True), "ensemble needs deep_supervision True"),
        (lambda: NestedUNet(1, 1, [4, 4], skip="sum"), "skip 'sum' needs equal channels"),
        (lambda: NestedUNet(1, 1, [4]).pruned(1), "a network with deep_supervision True"),
        (lambda: NestedUNet(1, 1, [4]).pruned(2), "num_levels must be at most 1, got 2"),
        (lambda: NestedUNet(1, 1, [4, 4])(torch.zeros(1, 1, 3, 9)), "must be at least 4 to be"),
        (lambda: NestedUNet(2, 1, [4])(torch.zeros(1, 1, 4, 4)), "must have 2 channels"),
        (lambda: NestedUNetDecoder([4], 1), r"at least two entries, got \[4\]"),
        (
            lambda: NestedUNetDecoder([4, 4], 1)([torch.zeros(1, 4, 8, 8)] * 2),
            "each about half the size",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_blocks_may_begin_with_a_strided_convolution():
    model = NestedUNet(1, 1, [4, 8], down="strided")
    sizes = [tuple(y.shape[2:]) for y in model.forward_features(torch.zeros(1, 1, 13, 9))]
    assert sizes == [(13, 9), (7, 5), (4, 3)]
    assert model(torch.zeros(1, 1, 13, 9)).shape == (1, 1, 13, 9)
