"""Fusion blocks against their definition, torchvision and timm."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torchvision.ops import FeaturePyramidNetwork

from neurenix_ms import AttentionFusion, FeatureFusion, PyramidFusion, ScaleFusion, UNetDecoder
from neurenix_ms._core.dims import CONVOLVE, LINEAR_MODES
from neurenix_ms._core.sizes import target_size
from neurenix_ms.meter import count_flops, peak_tensor_bytes


def levels(size, channels, dims, dtype=torch.float64):
    return [
        torch.randn(2, c, *(max(1, n // 2**i) for n in size[:dims]), dtype=dtype)
        for i, c in enumerate(channels)
    ]


def resize(x, size):
    return F.interpolate(x, size, mode=LINEAR_MODES[x.ndim - 2], align_corners=False)


@given(dims_and_sizes(1, 13), st.sampled_from(["largest", "smallest", 1, -1]), st.booleans())
def test_concat_equals_its_definition(shape, target, normed):
    dims, size = shape
    features = levels(size, [3, 5, 4], dims)
    fuse = FeatureFusion(
        [3, 5, 4], 6, target=target, spatial_dims=dims, norm="group" if normed else None
    ).double()
    goal = target_size([tuple(x.shape[2:]) for x in features], target)
    stacked = torch.cat([resize(x, goal) for x in features], 1)
    concat, norm, act = fuse.fuse
    expected = act(norm(CONVOLVE[dims](stacked, concat.conv.weight, concat.conv.bias)))
    torch.testing.assert_close(fuse(features), expected, atol=1e-12, rtol=1e-10)


def test_concat_keeps_one_weight_in_the_state_dict():
    fuse = FeatureFusion([3, 5], 4)
    shapes = {name: tuple(v.shape) for name, v in fuse.state_dict().items() if v.ndim == 4}
    assert list(shapes.values()) == [(4, 8, 1, 1)]


def tutorial():
    widths, sizes = [64, 128, 256, 512], [224, 112, 56, 28]
    return widths, [torch.randn(1, c, n, n) for c, n in zip(widths, sizes, strict=True)]


class ResizeConcatenateConvolve(torch.nn.Module):
    """The plain implementation."""

    def __init__(self, fuse):
        super().__init__()
        concat, self.norm, self.act = copy.deepcopy(fuse.fuse)
        self.weight, self.bias = concat.conv.weight, concat.conv.bias

    def forward(self, features):
        goal = features[0].shape[2:]
        x = torch.cat([resize(x, goal) for x in features], 1)
        return self.act(self.norm(F.conv2d(x, self.weight, self.bias)))


def test_concat_needs_a_seventh_of_the_flops_and_half_of_the_memory_of_plain_torch():
    widths, features = tutorial()
    fuse = FeatureFusion(widths, 256)
    plain = ResizeConcatenateConvolve(fuse)
    with torch.no_grad():
        torch.testing.assert_close(fuse(features), plain(features), atol=1e-4, rtol=1e-4)
        assert count_flops(lambda: plain(features)) >= 7 * count_flops(lambda: fuse(features))
        ours, theirs = (peak_tensor_bytes(lambda m=m: m(features)) for m in (fuse, plain))
    assert ours <= 0.5 * theirs


@pytest.mark.parametrize(
    ("method", "reduction"),
    [
        ("sum", lambda maps: sum(maps)),
        ("mean", lambda maps: torch.stack(maps).mean(0)),
        ("avg", lambda maps: torch.stack(maps).mean(0)),
        ("max", lambda maps: torch.stack(maps).amax(0)),
    ],
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_reductions_equal_their_definition(method, reduction, dims):
    features = levels((9, 6, 5), [3, 4, 4], dims)
    fuse = FeatureFusion([3, 4, 4], 4, method, spatial_dims=dims).double()
    projected = [fuse.fuse.points[0](features[0]), *features[1:]]
    goal = features[0].shape[2:]
    expected = reduction([resize(x, goal) for x in projected])
    torch.testing.assert_close(fuse(features), expected)


def test_equal_channels_need_no_parameters():
    assert not list(FeatureFusion([128] * 3, 128, "sum").parameters())


def test_the_output_size_can_be_given():
    fuse = FeatureFusion([3, 4], 4, "sum", target=(5, 3))
    assert fuse(levels((9, 6), [3, 4], 2, torch.float32)).shape == (2, 4, 5, 3)


@given(dims_and_sizes(1, 9), st.sampled_from(["channel", "spatial", "both"]))
def test_fresh_attention_is_the_mean_and_weights_sum_to_one(shape, attention):
    dims, size = shape
    features = levels(size, [4, 4, 4], dims)
    fuse = AttentionFusion([4, 4, 4], 4, spatial_dims=dims, attention=attention).double()
    goal = features[0].shape[2:]
    mean = torch.stack([resize(x, goal) for x in features]).mean(0)
    torch.testing.assert_close(fuse(features), mean)
    for p in fuse.parameters():
        torch.nn.init.normal_(p)
    weights = fuse.attention_weights(features)
    assert (
        weights.shape
        == {
            "channel": (2, 3, 4, *(1,) * dims),
            "spatial": (2, 3, 1, *goal),
            "both": (2, 3, 4, *goal),
        }[attention]
    )
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    same = [features[0]] * 3
    torch.testing.assert_close(fuse(same), features[0])


def test_the_attention_of_the_tutorial_has_223_008_parameters():
    fuse = AttentionFusion([64, 128, 256, 512], 256)
    assert sum(p.numel() for p in fuse.parameters()) == 223_008


def test_channel_attention_is_that_of_timm():
    selective = pytest.importorskip("timm.layers.selective_kernel")
    ours = AttentionFusion([8, 8], 8, reduction=2, min_hidden=4)
    theirs = selective.SelectiveKernelAttn(8, 2, attn_channels=4, norm_layer=torch.nn.Identity)
    first, _, last = ours.channel_scores
    torch.nn.init.normal_(last.weight)
    torch.nn.init.zeros_(first.bias)
    theirs.fc_reduce.weight.data.copy_(first.weight)
    theirs.fc_select.weight.data.copy_(last.weight)
    features = [torch.randn(2, 8, 7, 5) for _ in range(2)]
    weights = theirs(torch.stack(features, 1))
    torch.testing.assert_close(ours.attention_weights(features), weights)


@pytest.mark.parametrize("method", ["concat", "sum", "max", "attention"])
@pytest.mark.parametrize("scales", [[1.0, 0.5], [0.5, 1.0], [0.25, 2.0, 1.0]])
def test_scale_fusion_is_feature_fusion_at_the_largest_scale(method, scales):
    fuse = ScaleFusion(scales, 3, 4, method).double().eval()
    index = scales.index(max(scales))
    same = FeatureFusion([3] * len(scales), 4, method, target=index).double().eval()
    same.load_state_dict({k.removeprefix("fuse."): v for k, v in fuse.state_dict().items()})
    features = [torch.randn(1, 3, int(9 * s), int(14 * s)).double() for s in scales]
    assert torch.equal(fuse(features), same(features))
    assert fuse(features).shape[2:] == features[index].shape[2:]


def test_the_largest_feature_is_found_by_its_pixels_and_the_first_wins_a_tie():
    assert target_size([(2, 9), (4, 5), (5, 4)], "largest") == (4, 5)
    assert target_size([(3, 3), (9, 1), (1, 9)], "smallest") == (3, 3)


def fpn(channels, out):
    theirs = FeaturePyramidNetwork(channels, out)
    ours = PyramidFusion(channels, out)
    for a, b in zip(ours.laterals, theirs.inner_blocks, strict=True):
        a.load_state_dict(b[0].state_dict())
    for a, b in zip(ours.outputs, theirs.layer_blocks, strict=True):
        a.load_state_dict(b[0].state_dict())
    return ours, theirs


@pytest.mark.parametrize("size", [(32, 48), (31, 47), (29, 37), (8, 8)])
def test_pyramid_fusion_is_the_feature_pyramid_of_torchvision(size):
    ours, theirs = fpn([3, 5, 4, 7], 6)
    features = levels(size, [3, 5, 4, 7], 2, torch.float32)
    expected = theirs({str(i): x for i, x in enumerate(features)}).values()
    assert all(torch.equal(a, b) for a, b in zip(ours(features), expected, strict=True))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pyramid_fusion_is_the_feature_pyramid_of_monai(dims):
    monai = pytest.importorskip("monai.networks.blocks.feature_pyramid_network")
    theirs = monai.FeaturePyramidNetwork(dims, [3, 5, 4], 6)
    ours = PyramidFusion([3, 5, 4], 6, spatial_dims=dims)
    for mine, other in ((ours.laterals, theirs.inner_blocks), (ours.outputs, theirs.layer_blocks)):
        for a, b in zip(mine, other, strict=True):
            a.load_state_dict(b.state_dict())
    features = levels((16, 24, 8), [3, 5, 4], dims, torch.float32)
    expected = theirs({str(i): x for i, x in enumerate(features)}).values()
    assert all(torch.equal(a, b) for a, b in zip(ours(features), expected, strict=True))


def test_pyramid_fusion_takes_one_number_for_all():
    neck = PyramidFusion(8, num_scales=3, spatial_dims=1)
    out = neck([torch.zeros(1, 8, n) for n in (16, 8, 4)])
    assert [tuple(y.shape) for y in out] == [(1, 8, 16), (1, 8, 8), (1, 8, 4)]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("method", ["concat", "max", "attention"])
def test_gradients_of_the_fusions_are_right(dims, method):
    fuse = FeatureFusion([2, 3], 3, method, spatial_dims=dims, norm=None, act="tanh").double()
    for p in fuse.parameters():
        torch.nn.init.normal_(p)
    features = [x.requires_grad_() for x in levels((4, 3, 2), [2, 3], dims)]
    assert torch.autograd.gradcheck(lambda *f: fuse(list(f)), features)


def plane(c, n=4, batch=1):
    return torch.zeros(batch, c, n, n)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FeatureFusion([], 4), "in_channels must name at least one feature, got an empty"),
        (lambda: FeatureFusion([3, 0], 4), r"in_channels\[1\] must be at least 1, got 0"),
        (lambda: FeatureFusion([3], 0), "out_channels must be at least 1, got 0"),
        (
            lambda: FeatureFusion([3], 4, "product"),
            "fusion_method must be one of .*, got 'product'",
        ),
        (lambda: FeatureFusion([3], 4, target="middle"), "target must be .*, got 'middle'"),
        (lambda: FeatureFusion([3], 4, target=(3,)), r"a size of 2 axes, got \(3,\)"),
        (lambda: FeatureFusion([3], 4, target=True), "target must be .*, got True"),
        (lambda: FeatureFusion([3], 4, mode="area", spatial_dims=5), "spatial_dims must .*, got 5"),
        (lambda: FeatureFusion([3], 4)([]), "expected 1 features, got 0"),
        (lambda: FeatureFusion([3, 3], 4)([plane(3)]), "expected 2 features, got 1"),
        (
            lambda: FeatureFusion([3, 5], 4)([plane(3), plane(4)]),
            r"feature 1 must have 5 channels, got shape \(1, 4, 4, 4\)",
        ),
        (
            lambda: FeatureFusion([3, 5], 4)([plane(3), plane(5, batch=2)]),
            "one batch size, got 1 in feature 0 and 2 in feature 1",
        ),
        (
            lambda: FeatureFusion([3], 4, target=3)([plane(3)]),
            "target must be an index into 1 features, got 3",
        ),
        (lambda: AttentionFusion([3], 4, attention="self"), "attention must be .*, got 'self'"),
        (lambda: AttentionFusion([3], 4, reduction=0), "reduction must be at least 1, got 0"),
        (lambda: AttentionFusion([3], 4, min_hidden=0), "min_hidden must be at least 1, got 0"),
        (lambda: ScaleFusion([], 3, 4), "scales must hold at least one scale"),
        (
            lambda: ScaleFusion([1, float("nan")], 3, 4),
            r"scales\[1\] must be a finite number, got nan",
        ),
        (lambda: ScaleFusion([1, 0.5], 3, 4)([plane(3)]), "expected 2 features, got 1"),
        (lambda: PyramidFusion(8, num_scales=0), "num_scales must be at least 1, got 0"),
        (lambda: PyramidFusion([]), "in_channels must name at least one feature"),
        (lambda: PyramidFusion([3, 5], 4)([plane(3), plane(3)]), "feature 1 must have 5 channels"),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def feature_maps(channels=(3, 5, 4)):
    return [torch.randn(2, c, 16 >> k, 12 >> k) for k, c in enumerate(channels)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureFusion([3, 5, 4], 4),
        lambda: FeatureFusion([3, 5, 4], 4, "sum"),
        lambda: FeatureFusion([3, 5, 4], 4, "attention"),
        lambda: AttentionFusion([3, 5, 4], 4),
        lambda: UNetDecoder([3, 5, 4], 2),
    ],
)
def test_a_dict_of_feature_maps_is_taken_in_its_order(make):
    maps, model = feature_maps(), make().eval()
    for names in ("210", "abc"):
        assert torch.equal(model(dict(zip(names, maps, strict=True))), model(maps))


def test_a_pyramid_of_a_dict_is_an_ordered_dict_with_its_names():
    maps, neck = feature_maps(), PyramidFusion([3, 5, 4], 4)
    found = neck(OrderedDict(zip(["2", "1", "0"], maps, strict=True)))
    assert type(found) is OrderedDict
    assert list(found) == ["2", "1", "0"]
    assert all(torch.equal(a, b) for a, b in zip(found.values(), neck(maps), strict=True))


def test_a_pyramid_of_a_dict_compiles_in_one_piece():
    maps, neck = feature_maps(), PyramidFusion([3, 5, 4], 4)
    given = OrderedDict(zip("abc", maps, strict=True))
    found = torch.compile(neck, fullgraph=True, backend="eager")(given)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), neck(maps), strict=True))


@pytest.mark.parametrize("given", [torch.zeros(3, 3, 4, 4), 3, "maps", None, iter([])])
def test_inputs_other_than_lists_of_feature_maps_raise(given):
    for model in (
        FeatureFusion([3, 5, 4], 4),
        PyramidFusion([3, 5, 4], 4),
        UNetDecoder([3, 5, 4], 2),
    ):
        with pytest.raises(ValueError, match="features must be a list or a dict of tensors, got "):
            model(given)
    with pytest.raises(ValueError, match="the input must be a tensor, got 1"):
        FeatureFusion([3], 4)([1])
