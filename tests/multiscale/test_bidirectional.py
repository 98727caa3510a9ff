"""Bidirectional pyramids against their formula, at every size, in tiles."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import Tensor, nn

from neurenix_ms import BidirectionalFusion, UNet, enable_gradient_checkpointing
from neurenix_ms._core.dims import POOLS
from neurenix_ms.backbones import Backbone
from neurenix_ms.execution import TiledModel
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.multiscale.bidirectional import EPSILON, WeightedSum

WIDTHS = [3, 5, 4]


def levels(size, channels=WIDTHS, up=False, dtype=torch.float64):
    """Feature maps whose sizes are halved, rounded down or up."""
    features = []
    for c in channels:
        features.append(torch.randn(2, c, *size, dtype=dtype))
        size = tuple(max(1, (n + up) // 2) for n in size)
    return features


def scrambled(neck: BidirectionalFusion) -> BidirectionalFusion:
    """Set random parameters and statistics, and weights of both signs."""
    with torch.no_grad():
        for value in [*neck.parameters(), *neck.buffers()]:
            if value.is_floating_point():
                value.uniform_(0.5, 2)
        for module in neck.modules():
            if isinstance(module, WeightedSum) and module.weights is not None:
                module.weights.uniform_(-0.5, 2)
    return neck.double().eval()


def enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    """Upsample: entry i is entry i // 2 of the coarser feature map, or its last one."""
    for axis, n in enumerate(like.shape[2:], start=2):
        index = (torch.arange(n) // 2).clamp(max=coarse.shape[axis] - 1)
        coarse = coarse.index_select(axis, index)
    return coarse


def pooled(fine: Tensor, like: Tensor) -> Tensor:
    y = POOLS["max"][fine.ndim - 2](3, 2, 1)(fine)
    return y[(..., *(slice(n) for n in like.shape[2:]))]


def by_formula(neck: BidirectionalFusion, features: list[Tensor]) -> list[Tensor]:
    """The equations of section 3.3 for one layer: every intermediate and every output node."""

    def node(part, *inputs: Tensor) -> Tensor:
        weights = part.sum.weights.relu() / (EPSILON + part.sum.weights.relu().sum())
        y = sum(w * x for w, x in zip(weights, inputs, strict=True))
        return part.norm(part.conv(part.depthwise(F.silu(y))))

    layer = neck.layers[0]
    p = [project(x) for project, x in zip(layer.enter, features, strict=True)]
    top = len(p) - 1
    between = {top: p[top]}
    for i in reversed(range(top)):
        between[i] = node(layer.inner[str(i)], p[i], enlarged(between[i + 1], p[i]))
    out = [between[0]]
    for i in range(1, top):
        out.append(node(layer.outer[str(i)], p[i], between[i], pooled(out[-1], p[i])))
    out.append(node(layer.outer[str(top)], p[top], pooled(out[-1], p[top])))
    return out


@given(dims_and_sizes(1, 13), st.booleans())
def test_a_layer_is_the_published_formula_at_every_size(shape, up):
    dims, size = shape
    neck = scrambled(BidirectionalFusion(WIDTHS, 6, spatial_dims=dims))
    features = levels(size, up=up)
    torch.testing.assert_close(neck(features), by_formula(neck, features))


@given(dims_and_sizes(1, 9), st.sampled_from(["bifpn", "panet"]), st.sampled_from(["max", "conv"]))
def test_every_size_comes_out_as_it_came_in(shape, paths, downsample):
    dims, size = shape
    neck = BidirectionalFusion(
        WIDTHS, 6, repeats=2, extra_levels=2, paths=paths, downsample=downsample, spatial_dims=dims
    ).eval()
    features = levels(size, dtype=torch.float32)
    sizes = [tuple(x.shape[2:]) for x in neck(features)]
    assert sizes[:3] == [tuple(x.shape[2:]) for x in features]
    assert sizes[3:] == [
        tuple(-(-n // 2) for n in sizes[2]),
        tuple(-(-n // 4) for n in sizes[2]),
    ]


def test_panet_without_weights_is_a_pyramid_and_a_path_up():
    neck = scrambled(
        BidirectionalFusion(
            [4, 4], 4, paths="panet", weighting=None, separable=False, downsample="conv", norm=None
        )
    )
    fine, coarse = levels((7, 6), [4, 4])
    layer = neck.layers[0]

    def node(part, y):
        return part.conv(F.silu(y))

    top = node(layer.inner["1"], coarse)
    below = node(layer.inner["0"], fine + enlarged(top, fine))
    first = node(layer.outer["0"], below)
    second = node(layer.outer["1"], top + layer.downs[0](first)[..., :3, :3])
    torch.testing.assert_close(neck([fine, coarse]), [first, second])


@pytest.mark.parametrize("weighting", ["fast", "softmax", None])
def test_equal_weights_average_and_none_add(weighting):
    maps = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    expected = sum(maps) if weighting is None else sum(maps) / (3 + EPSILON * (weighting == "fast"))
    fuse = WeightedSum(3, weighting)
    torch.testing.assert_close(fuse(*maps), expected)
    coarse = torch.randn(2, 3, 3, 2)
    both = maps[0] + enlarged(coarse, maps[0])
    share = 1 if weighting is None else 2 + EPSILON * (weighting == "fast")
    torch.testing.assert_close(WeightedSum(2, weighting, True)(maps[0], coarse), both / share)


def test_weights_that_are_all_negative_give_no_nan():
    neck = BidirectionalFusion([4, 4], 4)
    for module in neck.modules():
        if isinstance(module, WeightedSum):
            torch.nn.init.constant_(module.weights, -1)
    out = neck(levels((8, 8), [4, 4], dtype=torch.float32))
    sum(y.square().sum() for y in out).backward()
    assert all(y.isfinite().all() for y in out)
    assert all(p.grad.isfinite().all() for p in neck.parameters() if p.grad is not None)


@pytest.mark.parametrize("paths", ["bifpn", "panet"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(paths, dims):
    neck = BidirectionalFusion(
        [2, 3], 2, paths=paths, norm=None, act="tanh", extra_levels=1, spatial_dims=dims
    )
    neck = scrambled(neck)
    features = [x[:1].requires_grad_() for x in levels((4, 3, 2)[:dims], [2, 3])]
    assert torch.autograd.gradcheck(lambda *f: tuple(neck(list(f))), features)


def test_checkpointing_changes_no_gradient_and_needs_less_memory():
    neck = BidirectionalFusion([16, 16], 16, repeats=2)
    features = [x.requires_grad_() for x in levels((48, 40), [16, 16], dtype=torch.float32)]

    def step(enabled: bool) -> list[Tensor]:
        other = copy.deepcopy(neck)
        with enable_gradient_checkpointing(enabled):
            loss = sum(y.square().mean() for y in other(features))
        return list(torch.autograd.grad(loss, [*other.parameters(), *features]))

    for a, b in zip(step(False), step(True), strict=True):
        assert torch.equal(a, b)
    plain, spared = (peak_tensor_bytes(lambda on=on: step(on)) for on in (False, True))
    assert spared < 0.85 * plain


def test_the_features_are_left_as_they_were():
    features = levels((12, 12))
    given, before = list(features), copy.deepcopy(features)
    scrambled(BidirectionalFusion(WIDTHS, 6, repeats=2))(features)
    assert all(a is b for a, b in zip(features, given, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


def test_edges_with_their_own_projections_have_more_parameters():
    per_level, per_edge = (
        BidirectionalFusion(WIDTHS, 6, projection=projection, norm=None)
        for projection in ("level", "edge")
    )
    count = [sum(p.numel() for p in neck.parameters()) for neck in (per_level, per_edge)]
    assert count[1] - count[0] == (5 + 1) * 6 + (4 + 1) * 6
    same = scrambled(per_level)
    other = per_edge.double().eval()
    state = same.state_dict()
    again = {k.replace("enter", "again"): v for k, v in state.items() if "enter" in k}
    other.load_state_dict({**state, **again}, strict=False)
    features = levels((9, 12))
    torch.testing.assert_close(other(features), same(features))


def test_a_dict_keeps_its_names():
    neck = BidirectionalFusion(WIDTHS, 6, extra_levels=2).eval()
    features = levels((16, 12), dtype=torch.float32)
    found = neck(OrderedDict(zip(["p3", "p4", "p5"], features, strict=True)))
    assert list(found) == ["p3", "p4", "p5", "extra0", "extra1"]
    assert all(torch.equal(a, b) for a, b in zip(found.values(), neck(features), strict=True))


class Network(nn.Module):
    """An encoder, a neck, and all levels."""

    def __init__(self, dims: int, **options) -> None:
        super().__init__()
        encoder = UNet(1, 1, [3, 4], norm=None, remember=False, spatial_dims=dims)
        self.encoder = Backbone(encoder)
        self.neck = BidirectionalFusion(self.encoder, 4, spatial_dims=dims, **options)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.neck(self.encoder(x))


@pytest.mark.parametrize(
    ("dims", "size", "tile", "options"),
    [
        (1, (93,), 16, {}),
        (2, (45, 61), 24, {"paths": "panet", "separable": False, "downsample": "conv"}),
        pytest.param(1, (93,), 16, {"extra_levels": 1, "repeats": 2}, marks=pytest.mark.slow),
        pytest.param(2, (53, 44), 24, {}, marks=pytest.mark.slow),
        pytest.param(3, (26, 21, 18), 12, {"weighting": "softmax"}, marks=pytest.mark.slow),
    ],
)
def test_tiles_are_equal_to_the_whole(dims, size, tile, options):
    model = Network(dims, **options)
    scrambled(model.neck)
    model = model.double().eval()
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x)
        tiled = TiledModel(model, tile, spatial_dims=dims)(x)
    for a, b in zip(whole, tiled, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-10 * a.std()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BidirectionalFusion([3], 4), r"at least two levels, got in_channels \[3\] and"),
        (lambda: BidirectionalFusion([], 4), "in_channels must name at least one feature"),
        (lambda: BidirectionalFusion([3, 5], 0), "out_channels must be at least 1, got 0"),
        (lambda: BidirectionalFusion([3, 5], 4, repeats=0), "repeats must be at least 1, got 0"),
        (lambda: BidirectionalFusion([3, 5], 4, repeats=65), "repeats must be at most 64, got 65"),
        (
            lambda: BidirectionalFusion([3, 5], 4, extra_levels=-1),
            "extra_levels must be at least 0",
        ),
        (lambda: BidirectionalFusion([3, 5], 4, paths="fpn"), "paths must be one of .*, got 'fpn'"),
        (lambda: BidirectionalFusion([3, 5], 4, weighting="mean"), "weighting must be .*'mean'"),
        (lambda: BidirectionalFusion([3, 5], 4, spatial_dims=4), "spatial_dims must be .*, got 4"),
        (
            lambda: BidirectionalFusion([3, 5], 4)(levels((8, 8), [3, 5, 4])),
            "expected 2 features, got 3",
        ),
        (
            lambda: BidirectionalFusion([3, 5], 4)(levels((8, 8), [3, 5])[::-1]),
            r"feature 0 must have 3 channels",
        ),
        (
            lambda: BidirectionalFusion([3, 3], 4)(levels((8, 8), [3, 3])[::-1]),
            "features must come finest first, each about half the size of the one before",
        ),
        (
            lambda: BidirectionalFusion([3, 3], 4, extra_levels=4)(
                [x[:1].float() for x in levels((8, 8), [3, 3])]
            ),
            "more than one pixel in the smallest",
        ),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()
