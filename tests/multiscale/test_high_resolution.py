"""High-resolution networks against their definition, at every size, checkpointed and in tiles."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor, nn

from neurenix_ms import (
    FeatureFusion,
    HighResolutionNetwork,
    UNetDecoder,
    enable_gradient_checkpointing,
)
from neurenix_ms._core.dims import LINEAR_MODES
from neurenix_ms.backbones import Backbone
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.meter import peak_tensor_bytes


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(0.2 * torch.rand_like(value))
    return model.double().eval()


def enlarged(x: Tensor, factor: int, size, linear: bool) -> Tensor:
    """Every position as often as it is enlarged, or linear, and cropped."""
    if linear:
        x = F.interpolate(x, scale_factor=factor, mode=LINEAR_MODES[x.ndim - 2])
    for axis, n in enumerate(size, start=2):
        index = torch.arange(n) if linear else torch.arange(n) // factor
        x = x.index_select(axis, index)
    return x


def by_definition(model: HighResolutionNetwork, x: Tensor) -> list[Tensor]:
    """Section 3.1: streams in parallel, one more per stage, and sums over all of them."""
    for layer in model.stem:
        x = layer(x)
    streams = [x]
    for index, stage in enumerate(model.stages):
        if index:
            streams.append(model.branch[index - 1](streams[-1]))
        for module in stage.children():
            streams = [block(y) for block, y in zip(module.blocks, streams, strict=True)]
            if index:
                sums = []
                for i, own in enumerate(streams):
                    edges = iter(module.exchange.edges[i])
                    total = own
                    for j, other in enumerate(streams):
                        if j != i:
                            y = next(edges)(other)
                            if j > i:
                                y = enlarged(y, 2 ** (j - i), own.shape[2:], model.up == "linear")
                            total = total + y
                    sums.append(F.relu(total))
                streams = sums
    return streams


@given(dims_and_sizes(1, 17))
@pytest.mark.slow
def test_streams_are_those_of_the_definition_at_every_size(shape):
    dims, size = shape
    for up in ("nearest", "linear"):
        model = HighResolutionNetwork(
            2, features=[2, 3, 4], num_modules=[1, 2, 1], spatial_dims=dims, stem_reductions=1,
            stem_channels=3, up=up,
        )  # fmt: skip
        model = scrambled(model)
        x = torch.randn(2, 2, *size, dtype=torch.float64)
        streams = model(x)
        torch.testing.assert_close(streams, by_definition(model, x))
        sizes = [tuple(-(-n // 2 ** (k + 1)) for n in size) for k in range(3)]
        assert [tuple(y.shape[2:]) for y in streams] == sizes


@given(dims_and_sizes(1, 17))
def test_the_output_joins_all_streams_at_the_size_of_the_input(shape):
    dims, size = shape
    model = HighResolutionNetwork(
        1, 2, [2, 3], spatial_dims=dims, stem_reductions=2, stem_channels=2, final_activation="softmax"
    )  # fmt: skip
    model = scrambled(model)
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    fine, coarse = model.forward_features(x)
    head = model.head
    stacked = torch.cat([fine, enlarged(coarse, 2, fine.shape[2:], True)], dim=1)
    weight = torch.cat([point.weight for point in head.points], dim=1)
    mixed = torch.einsum("oi,bi...->bo...", weight.flatten(1), stacked)
    logits = head.head(F.relu(head.norm(mixed)))
    wanted = enlarged(logits, 4, size, True).softmax(1)
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.slow
def test_streams_fit_decoders_and_fusions():
    network = HighResolutionNetwork(3, features=[4, 6, 8], stem_channels=4)
    backbone = Backbone(network)
    assert (backbone.channels, backbone.strides) == ([4, 6, 8], [4, 8, 16])
    streams = backbone(torch.randn(2, 3, 61, 45))
    assert UNetDecoder(backbone, 1)(streams).shape == (2, 1, 16, 12)
    assert FeatureFusion(backbone, 5)(streams).shape == (2, 5, 16, 12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    model = HighResolutionNetwork(
        1, 1, [2, 2, 2], spatial_dims=dims, stem_reductions=1, stem_channels=2, depth=1,
        norm=None, act="tanh", up="linear",
    ).double()  # fmt: skip
    x = torch.randn(1, 1, *(7, 5, 3)[:dims], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x)


def test_checkpointing_changes_no_gradient_and_needs_less_memory():
    model = HighResolutionNetwork(1, 1, [8, 16], stem_reductions=0)
    x = torch.randn(1, 1, 48, 40)

    def step(enabled: bool) -> list[Tensor]:
        other = copy.deepcopy(model)
        with enable_gradient_checkpointing(enabled):
            loss = other(x).square().mean()
        return list(torch.autograd.grad(loss, list(other.parameters())))

    for a, b in zip(step(False), step(True), strict=True):
        assert torch.equal(a, b)
    plain, spared = (peak_tensor_bytes(lambda on=on: step(on)) for on in (False, True))
    assert spared < 0.75 * plain


@pytest.mark.parametrize(
    ("dims", "size", "up"),
    [
        (1, (181,), "nearest"),
        pytest.param(1, (166,), "linear", marks=pytest.mark.slow),
        pytest.param(2, (90, 61), "nearest", marks=pytest.mark.slow),
    ],
)
def test_in_tiles_it_is_the_whole(dims, size, up):
    model = scrambled(
        HighResolutionNetwork(
            1, 2, [2, 3], spatial_dims=dims, stem_reductions=1, stem_channels=2, depth=1, up=up
        )
    )
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(TiledModel(model, 32, spatial_dims=dims)(x), model(x))


def test_gradients_in_tiles_are_those_of_the_whole():
    model = HighResolutionNetwork(
        1, 1, [2, 2], stem_reductions=1, stem_channels=2, depth=1, norm="group"
    ).double()
    x, target = torch.randn(2, 1, 1, 52, 46, dtype=torch.float64)
    whole = copy.deepcopy(model)
    F.mse_loss(whole(x), target).backward()
    accumulate_gradients(model, x, target, F.mse_loss, 24)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HighResolutionNetwork(1, features=[]), "features must hold at least one width"),
        (lambda: HighResolutionNetwork(1, 0), "out_channels must be at least 1, got 0"),
        (lambda: HighResolutionNetwork(1, hidden_channels=4), "need out_channels, got None"),
        (lambda: HighResolutionNetwork(1, num_modules=[1, 1]), "one value or a list of 4"),
        (lambda: HighResolutionNetwork(1, num_modules=0), r"num_modules\[0\] must be at least 1"),
        (lambda: HighResolutionNetwork(1, stem_reductions=-1), "stem_reductions must be at least"),
        (lambda: HighResolutionNetwork(1, up="cubic"), "up must be"),
        (lambda: HighResolutionNetwork(1)(torch.zeros(1, 2, 8, 8)), "must have 1 channels"),
        (lambda: HighResolutionNetwork(1)(torch.zeros(1, 1, 8)), "2 spatial axes, got shape"),
        (
            lambda: HighResolutionNetwork(1, features=[4, 4])(torch.zeros(1, 1, 8, 7)),
            r"more than one pixel in the smallest feature map, got batch size 1 and size \(1, 1\)",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
