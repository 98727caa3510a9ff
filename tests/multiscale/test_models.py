"""UNet, UNetDecoder, PyramidNetwork and MultiScaleModel against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import DIMS, dims_and_sizes
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet, UNetDecoder
from neurenix_ms._core.sizes import fit
from neurenix_ms.layers.naming import group_norm


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 17_267_393),
        ({"bilinear": False}, 31_043_521),
        ({"conv_bias": False}, 17_262_977),
        ({"bilinear": False, "conv_bias": None}, 31_037_633),
        ({"block": "single"}, 7_085_633),
        ({"spatial_dims": 1}, 5_764_673),
        ({"spatial_dims": 1, "bilinear": False}, 10_824_513),
        ({"spatial_dims": 3}, 51_775_553),
        ({"spatial_dims": 3, "bilinear": False}, 90_307_905),
    ],
)
def test_unets_have_the_known_numbers_of_parameters(options, expected):
    with torch.device("meta"):
        assert count(UNet(3, 1, **options)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected", "with_pyramid"),
    [
        ((3, 1, 4, 32), 1_188_993, None),
        ((3, 1, 3, 64), 1_175_745, None),
        ((3, 128, 4, 64), 4_958_272, 5_401_024),
        ((3, 256, 4, 64), 5_524_160, 7_294_400),
    ],
)
def test_pyramids_have_the_known_numbers_of_parameters(arguments, expected, with_pyramid):
    with torch.device("meta"):
        assert count(PyramidNetwork(*arguments)) == expected
        if with_pyramid:
            assert count(PyramidNetwork(*arguments, return_pyramid=True)) == with_pyramid


@given(dims_and_sizes(4, 13), st.booleans(), st.sampled_from(["single", "double", "residual"]))
def test_a_unet_keeps_any_size(shape, bilinear, block):
    dims, size = shape
    model = UNet(2, 3, [4, 4], spatial_dims=dims, bilinear=bilinear, block=block).eval()
    assert model(torch.randn(1, 2, *size)).shape == (1, 3, *size)
    sizes = [tuple(n >> i for n in size) for i in range(3)]
    assert [tuple(y.shape[2:]) for y in model.get_encoder_features()] == sizes
    assert [tuple(y.shape[2:]) for y in model.get_decoder_features()] == sizes[1::-1]


def test_the_head_reads_the_last_decoder_feature_map():
    model = UNet(1, 2, [4, 8])
    y = model(torch.randn(2, 1, 9, 9))
    assert torch.equal(model.head(model.get_decoder_features()[-1]), y)
    assert [f.shape[1] for f in model.get_encoder_features()] == [4, 8, 8]


def test_upsampled_feature_maps_are_padded_at_the_end_and_concatenated_after_the_skip():
    model = UNet(1, 1, [2], norm=None, act=None, block="single")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.level.inner.encode.layers[0].conv.weight[:, :, 1, 1] = 1  # deep = pooled skip
        model.level.encode.layers[0].conv.weight[:, :, 1, 1] = 1
        model.level.decode.block.layers[0].conv.weight[0, 2:, 1, 1] = 1  # only what came from below
        model.head.conv.weight[0, 0] = 1
    x = torch.ones(1, 1, 5, 4)
    y = model(x)[0, 0]
    assert torch.equal(y[-1], torch.zeros(4))
    assert (y[:-1] == 4).all()  # two encoded channels, summed twice


def test_a_unet_decoder_on_the_encoder_features_equals_the_unet():
    model = UNet(2, 1, [4, 8, 8]).eval()
    decoder = UNetDecoder([4, 8, 8, 8], 1).eval()
    levels, level = [], model.level
    while level.inner is not None:
        levels.append(level.decode)
        level = level.inner
    for mine, other in zip(decoder.ups, reversed(levels), strict=True):
        mine.load_state_dict(other.state_dict())
    decoder.head.load_state_dict(model.head.state_dict())
    y = model(torch.randn(1, 2, 21, 27))
    assert torch.equal(decoder(model.get_encoder_features()), y)


@given(dims_and_sizes(1, 9))
def test_a_decoder_accepts_sizes_halved_with_rounding_up_or_down(shape):
    dims, size = shape
    decoder = UNetDecoder([3, 4], 2, 2, spatial_dims=dims).eval()
    for half in (lambda n: max(1, n // 2), lambda n: -(-n // 2)):
        features = [torch.randn(1, 3, *size), torch.randn(1, 4, *map(half, size))]
        assert decoder(features).shape == (1, 2, *size)


@pytest.mark.parametrize(
    ("final", "function"),
    [
        ("sigmoid", torch.sigmoid),
        ("softmax", lambda y: torch.softmax(y, 1)),
        ("softplus", F.softplus),
        ("relu", torch.relu),
        (torch.tanh, torch.tanh),
        (nn.Tanh, torch.tanh),
    ],
)
def test_the_final_activation_follows_the_logits(final, function):
    model = UNet(1, 3, [4], final_activation=final).eval()
    logits = UNet(1, 3, [4]).eval()
    logits.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(model(x), function(logits(x)))


def test_a_residual_channel_is_added_before_the_activation():
    model = UNet(3, 1, [4], residual_channel=2, final_activation="softplus").eval()
    for p in model.head.parameters():
        nn.init.zeros_(p)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model(x), F.softplus(x[:, 2:]))


def test_a_residual_block_starts_from_its_shortcut():
    model = UNet(4, 1, [4], block="residual", norm=None)
    block = model.level.encode
    for p in block.parameters():
        nn.init.zeros_(p)
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(block(x), torch.relu(x))


def test_dropout_drops_whole_channels_in_training_only():
    model = UNet(1, 1, [64], dropout=0.5)
    x = torch.randn(2, 1, 8, 8)
    block = model.level.encode
    dropped = (block(x).flatten(2) == 0).all(-1).float().mean()
    assert 0.3 < dropped < 0.7
    assert (block.eval()(x).flatten(2) != 0).any(-1).all()


@given(st.integers(1, 300))
def test_groups_divide_the_channels(channels):
    groups = group_norm(channels).num_groups
    assert channels % groups == 0
    assert 1 <= groups <= max(1, min(32, channels // 4))
    assert not any(channels % n == 0 for n in range(groups + 1, max(1, min(32, channels // 4)) + 1))


@given(dims_and_sizes(4, 13))
def test_a_pyramid_keeps_any_size(shape):
    dims, size = shape
    model = PyramidNetwork(2, 3, 3, 4, spatial_dims=dims, return_pyramid=True).eval()
    x = torch.randn(1, 2, *size)
    sizes = [tuple(n >> i for n in size) for i in range(3)]
    assert [(y.shape[1], tuple(y.shape[2:])) for y in model(x)] == [(3, s) for s in sizes]
    features = model.get_features()
    assert [f.shape[1] for f in features] == model.feature_channels == [4, 8, 16]
    assert [tuple(f.shape[2:]) for f in features] == sizes
    assert all(torch.equal(a, b) for a, b in zip(model.forward_features(x), features, strict=True))


def test_the_output_is_the_first_level_of_the_pyramid():
    every = PyramidNetwork(2, 3, 3, 4, return_pyramid=True).eval()
    finest = PyramidNetwork(2, 3, 3, 4).eval()
    state = every.state_dict()
    finest.load_state_dict({name: state[name] for name in finest.state_dict()})
    x = torch.randn(1, 2, 13, 9)
    assert torch.equal(finest(x), every(x)[0])


@pytest.mark.parametrize("size", [(16, 24), (64, 8)])
def test_the_top_down_path_equals_the_feature_pyramid_of_torchvision(size):
    model = PyramidNetwork(3, 5, 4, 4, return_pyramid=True).eval()
    width = model.pyramid_channels
    theirs = FeaturePyramidNetwork(model.feature_channels, width)
    level, depth = model.level, 0
    while level is not None:
        theirs.inner_blocks[depth][0].load_state_dict(level.decode.lateral.state_dict())
        depth, level = depth + 1, level.inner
    theirs = FeaturePyramidNetwork.forward, theirs
    layer_blocks = nn.ModuleList(nn.Sequential(out) for out in model.outputs)
    theirs[1].layer_blocks = layer_blocks
    x = torch.randn(2, 3, *size)
    ours = model(x)
    expected = theirs[1]({str(i): f for i, f in enumerate(model.get_features())}).values()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@given(st.integers(1, 9), st.integers(0, 1), DIMS)
def test_entry_i_takes_coarse_entry_half_of_i(n, odd, dims):
    from neurenix_ms.layers.resize import enlarged

    size = (2 * n + odd,) * dims
    coarse = torch.randn(1, 1, *(n,) * dims)
    index = (torch.arange(size[0]) // 2).clamp(max=n - 1)
    expected = coarse
    for axis in range(2, 2 + dims):
        expected = expected.index_select(axis, index)
    assert torch.equal(enlarged(coarse, size), expected)


def test_features_are_remembered_attached_and_dropped_by_copies():
    for model in (UNet(1, 1, [4]), PyramidNetwork(1, 1, 2, 4)):
        getter = "get_features" if isinstance(model, PyramidNetwork) else "get_encoder_features"
        with pytest.raises(RuntimeError, match=f"{type(model).__name__} has no cached features"):
            getattr(model, getter)()
        model(torch.randn(2, 1, 8, 8))
        assert getattr(model, getter)()[0].requires_grad
        assert not any("memory" in name for name in model.state_dict())
        with pytest.raises(RuntimeError, match="has no cached features"):
            getattr(copy.deepcopy(model), getter)()
        model.clear_features()
        with pytest.raises(RuntimeError, match="has no cached features"):
            getattr(model, getter)()
    silent = UNet(1, 1, [4], remember=False)
    silent(torch.randn(2, 1, 8, 8))
    with pytest.raises(RuntimeError, match="remember=True"):
        silent.get_decoder_features()


def network(dims=2):
    return nn.Sequential(getattr(nn, f"Conv{dims}d")(3, 4, 3, padding=1), nn.Tanh())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("method", ["concat", "sum", "mean", "avg", "max", "attention"])
def test_a_multi_scale_model_equals_its_definition(dims, method):
    base = network(dims)
    model = MultiScaleModel([0.5, 1, 0.75], base, method, spatial_dims=dims, channels=4)
    x = torch.randn(2, 3, *(9, 7, 6)[:dims])
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]

    def to(y, size):
        return F.interpolate(y, size, mode=mode, align_corners=False)

    outs = [base(to(x, [max(1, int(n * s)) for n in x.shape[2:]])) for s in (0.5, 1, 0.75)]
    aligned = [to(y, x.shape[2:]) for y in outs]
    stacked = torch.stack(aligned)
    expected = {
        "concat": torch.cat(aligned, 1),
        "sum": stacked.sum(0),
        "max": stacked.amax(0),
    }.get(method, stacked.mean(0))  # fresh attention is the mean
    torch.testing.assert_close(model(x), expected)


def test_attention_weights_sum_to_one_over_the_scales():
    model = MultiScaleModel([1, 0.5], network(), "attention", channels=4)
    for p in model.scores.parameters():
        nn.init.normal_(p)
    weights = model.attention_weights(torch.randn(2, 3, 8, 6))
    assert weights.shape == (2, 2, 8, 6)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 8, 6))


def test_the_score_head_does_not_depend_on_the_number_of_scales():
    model = MultiScaleModel([1, 0.5], network(), "attention", channels=4)
    other = MultiScaleModel(
        [1, 0.5, 0.25], copy.deepcopy(model.base_model), "attention", channels=4
    )
    for p in model.scores.parameters():
        nn.init.normal_(p)
    other.scores.load_state_dict(model.scores.state_dict())
    model.add_scale(0.25)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model(x), other(x))


class Given(nn.Module):
    """Whatever a function makes of the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ChannelsLast(nn.Module):
    """Its first layer is a linear one, over the last axis."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 6)

    def forward(self, x):
        return self.mix(x.movedim(1, -1)).movedim(-1, 1)


BASES = {
    "conv": (lambda: network(), 3, 4),
    "unet": (lambda: UNet(2, 5, features=[4, 8]), 2, 5),
    "vector": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
        3,
        5,
    ),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(7), nn.ReLU()), 7, 7),
    "channels last": (ChannelsLast, 2, 6),
    "pixels as channels": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1)),
        3,
        4,
    ),
    "fixed size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)), None, 2),
}


@pytest.mark.parametrize("name", BASES)
def test_the_channels_of_the_score_head_are_measured(name):
    build, in_channels, channels = BASES[name]
    base = build()
    before = copy.deepcopy(base.state_dict())
    model = MultiScaleModel([1, 0.5], base, "attention")
    assert model.channels == channels
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    if in_channels is not None:
        x = torch.randn(2, in_channels, 16, 12)
        torch.testing.assert_close(model(x), MultiScaleModel([1, 0.5], base, "mean")(x))


def test_the_score_head_is_there_before_the_first_forward():
    x = torch.randn(1, 3, 8, 8)

    def trained_after(first_call):
        model = MultiScaleModel([1, 0.5], network(), "attention")
        names = [name for name, _ in model.named_parameters()]
        assert "scores.0.weight" in names
        first_call(model)
        assert names == [name for name, _ in model.named_parameters()]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        model(x).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        return model

    def in_inference_mode(model):
        with torch.inference_mode():
            model(x)

    def in_autocast(model):
        with torch.autocast("cpu", torch.bfloat16):
            model(x)

    for first_call in (in_inference_mode, in_autocast, lambda model: None):
        trained_after(first_call)
    frozen = MultiScaleModel([1, 0.5], network(), "attention").requires_grad_(False).eval()
    frozen(x)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules())
    averaged = torch.optim.swa_utils.AveragedModel(frozen)
    assert torch.equal(averaged(x), frozen(x))


def test_a_measured_score_head_draws_no_random_numbers_and_fits_the_network():
    torch.manual_seed(3)
    MultiScaleModel([1, 0.5], network(), "mean")
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = MultiScaleModel([1, 0.5], network(), "attention")
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(3)
    twin = MultiScaleModel([1, 0.5], network(), "attention")
    assert torch.equal(twin.scores[0].weight, model.scores[0].weight)
    double = MultiScaleModel([1, 0.5], network().double(), "attention")
    assert double(torch.randn(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    given = MultiScaleModel([1, 0.5], network().double(), "attention", channels=4)
    assert given.scores[0].weight.dtype == torch.float64
    with torch.device("meta"):
        assert MultiScaleModel([1, 0.5], network(), "attention").scores[0].weight.is_meta


def test_a_nested_score_head_is_loaded():
    def build():
        return nn.Sequential(MultiScaleModel([1, 0.5], network(), "attention"), nn.Conv2d(4, 2, 1))

    model, other = build(), build()
    for p in model.parameters():
        nn.init.normal_(p)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(other(x), model(x))


def test_a_state_from_before_the_first_forward_of_older_models_is_loaded():
    model = nn.Sequential(MultiScaleModel([1, 0.5], network(), "attention"))
    state = copy.deepcopy(model.state_dict())
    for name in [name for name in state if "scores" in name]:
        del state[name]
    with pytest.raises(RuntimeError, match=r"Missing key.*scores\.0\.weight"):
        model.load_state_dict(state)
    state._metadata["0"]["version"] = 1
    other = nn.Sequential(MultiScaleModel([1, 0.5], network(), "attention"))
    other.load_state_dict(state)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(other(x), model(x))  # both are fresh, and return the mean


class Valued(nn.Module):
    """Looks at values, which tensors without memory do not have."""

    def forward(self, x):
        return x if x.sum().item() > 0 else -x


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (None, "got None and Identity, which takes any number of channels"),
        (nn.ReLU(), "got None and ReLU, which takes any number of channels"),
        (Valued(), "got None and Valued, which takes no image that was tried: "),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Unflatten(0, (1, 3, 9))),
            "takes no image that was tried",
        ),
        (Given(lambda x: [x]), "takes no image that was tried: it returned list"),
    ],
)
def test_channels_are_required_where_they_cannot_be_measured(base, words):
    with pytest.raises(ValueError, match=f"channels must be given with .*{words}"):
        MultiScaleModel([1, 0.5], base, "attention")
    model = MultiScaleModel([1, 0.5], base, "attention", channels=3)
    assert model.scores is not None


def test_outputs_that_the_score_head_was_not_built_for_raise():
    model = MultiScaleModel([1, 0.5], network(), "attention", channels=5)
    with pytest.raises(ValueError, match=r"must give 5 channels, .* got 4 at scale 0"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="must return one tensor, got list at scale 0"):
        MultiScaleModel([1], Given(lambda x: [x]))(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("method", ["concat", "sum", "attention"])
def test_vectors_are_fused_without_resizing(method):
    base = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    model = MultiScaleModel([1, 0.5], base, method)
    x = torch.randn(2, 3, 8, 8)
    assert model(x).shape == ((2, 10) if method == "concat" else (2, 5))
    if method == "attention":
        assert model.attention_weights(x).shape == (2, 2)


def test_scales_can_be_added_and_removed():
    model = MultiScaleModel([1.0, 0.5], network(), share_weights=False)
    x = torch.randn(1, 3, 8, 8)
    model.add_scale(0.25)
    assert model(x).shape == (1, 12, 8, 8)
    assert len(model.networks) == 3
    model.remove_scale(1.0)
    assert model.scales == [0.5, 0.25]
    assert model(x).shape == (1, 8, 4, 4)
    model.scales.append(3.0)
    assert model.scales == [0.5, 0.25]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_of_the_models_are_right(dims):
    x = torch.randn(1, 2, *(5, 4, 4)[:dims], dtype=torch.float64, requires_grad=True)
    k = {"spatial_dims": dims}
    for model in (
        UNet(2, 1, [2], act="tanh", **k),
        UNet(2, 1, [2], act="tanh", bilinear=False, block="residual", norm="group", **k),
        PyramidNetwork(2, 1, 2, 2, act="tanh", **k),
        MultiScaleModel([1, 0.5], fusion_method="mean", **k),
    ):
        assert torch.autograd.gradcheck(model.double().eval(), x)


def test_lists_given_are_not_shared():
    features = [4, 8]
    model = UNet(1, 1, features)
    features.append(16)
    assert model.features == [4, 8]
    assert UNet(1, 1).features is not UNet(1, 1).features


def test_a_feature_map_is_cropped_or_padded_at_its_end():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert fit(x, (2, 3)) is x
    assert torch.equal(fit(x, (1, 4)), torch.tensor([[[[0.0, 1, 2, 0]]]]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNet(0, 1), "in_channels must be at least 1, got 0"),
        (lambda: UNet(1, 0), "out_channels must be at least 1, got 0"),
        (lambda: UNet(1, 1, []), "features must hold at least one width, got an empty list"),
        (lambda: UNet(1, 1, [4, 0]), r"features\[1\] must be at least 1, got 0"),
        (lambda: UNet(1, 1, spatial_dims=4), "spatial_dims must be one of .*, got 4"),
        (lambda: UNet(1, 1, block="triple"), "block must be one of .*, got 'triple'"),
        (lambda: UNet(1, 1, norm="layer"), "norm must be one of .*, got 'layer'"),
        (lambda: UNet(1, 1, act="mish"), "act must be one of .*, got 'mish'"),
        (lambda: UNet(1, 1, kernel_size=4), "kernel_size must be odd to keep the size, got 4"),
        (lambda: UNet(1, 1, dropout=1.5), "dropout must be at least 0 and below 1, got 1.5"),
        (lambda: UNet(1, 1, padding_mode="mirror"), "padding_mode must be one of .*, got 'mirror'"),
        (lambda: UNet(1, 1, final_activation="exp"), "final_activation must .*, got 'exp'"),
        (lambda: UNet(1, 1, residual_channel=1), "one of the 1 input channels, got 1"),
        (lambda: UNet(2, 2, residual_channel=1), "residual_channel needs out_channels 1, got 2"),
        (
            lambda: UNet(1, 1, bottleneck_channels=0),
            "bottleneck_channels must be at least 1, got 0",
        ),
        (lambda: UNet(1, 1)(torch.zeros(1, 1, 16, 15)), r"at least 16 to be halved 4 times, got"),
        (lambda: UNet(1, 1)(torch.zeros(1, 2, 16, 16)), r"must have 1 channels, got shape \(1, 2"),
        (
            lambda: UNet(1, 1)(torch.zeros(1, 1, 16, 16)),
            r"need more than one pixel in the smallest feature map, got batch size 1 and size \(1, 1\)",
        ),
        (
            lambda: UNet(1, 1, [4], norm="instance").eval()(torch.zeros(3, 1, 2, 2)),
            r"got batch size 3 and size \(1, 1\) there with norm 'instance'",
        ),
        (lambda: UNetDecoder([3], 1), r"at least two entries, got \[3\]"),
        (lambda: UNetDecoder([3, 4], 1, 3), "must equal the 2 encoder_channels, got 3"),
        (lambda: UNetDecoder([3, 4], 1)([torch.zeros(1, 3, 4, 4)]), "expected 2 features, got 1"),
        (lambda: PyramidNetwork(1, 1, 0), "num_levels must be at least 1, got 0"),
        (lambda: PyramidNetwork(1, 1, base_channels=0), "base_channels must be at least 1, got 0"),
        (
            lambda: PyramidNetwork(1, 1, pyramid_channels=0),
            "pyramid_channels must be at least 1, got 0",
        ),
        (lambda: PyramidNetwork(1, 1)(torch.zeros(1, 1, 3, 9)), "at least 4 to be halved 2 times"),
        (lambda: MultiScaleModel([]), "scales must hold at least one scale"),
        (lambda: MultiScaleModel([float("nan")]), r"scales\[0\] must be a finite number, got nan"),
        (lambda: MultiScaleModel(fusion_method="vote"), "fusion_method must be .*, got 'vote'"),
        (lambda: MultiScaleModel(spatial_dims=0), "spatial_dims must be one of .*, got 0"),
        (lambda: MultiScaleModel().add_scale(0), "scale must be above 0, got 0"),
        (lambda: MultiScaleModel().add_scale(0.5 + 1e-12), "scales must differ, got 0.5"),
        (
            lambda: MultiScaleModel().remove_scale(0.3),
            r"must be one of \[1.0, 0.5, 0.25\], got 0.3",
        ),
        (lambda: MultiScaleModel([1]).remove_scale(1), "the last scale cannot be removed, got 1"),
        (
            lambda: MultiScaleModel().attention_weights(torch.zeros(1, 1, 4, 4)),
            "attention_weights needs fusion_method 'attention', got 'concat'",
        ),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Changing(nn.Module):
    """A base model whose outputs do not fit each other."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, x):
        return next(self.outputs)


def test_base_models_whose_outputs_do_not_fit_raise():
    maps = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 3)]
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(
        ValueError, match="equal channels at every scale, got 3 at scale 0 and 2 at"
    ):
        MultiScaleModel([1, 0.5], Changing(maps[:2]), "sum")(x)
    with pytest.raises(ValueError, match=r"one rank, got shape \(1, 3, 4, 4\) at scale 0"):
        MultiScaleModel([1, 0.5], Changing(maps[::2]))(x)
