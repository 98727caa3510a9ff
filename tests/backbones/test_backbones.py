"""Backbones return feature maps as measured, at any size, for every family of networks."""

import copy
import importlib.util
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neurenix_ms as nms
from neurenix_ms import FeatureFusion, PyramidFusion, PyramidPooling, UNetDecoder
from neurenix_ms.backbones import Backbone, inflate

torchvision = pytest.importorskip("torchvision")

SIZE = (75, 61)
FAMILIES = {
    "resnet18": ([64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
    "mobilenet_v3_small": ([16, 16, 24, 48, 576], [2, 4, 8, 16, 32]),
    "efficientnet_b0": ([16, 24, 40, 112, 1280], [2, 4, 8, 16, 32]),
    "convnext_tiny": ([96, 192, 384, 768], [4, 8, 16, 32]),
    "swin_t": ([96, 192, 384, 768], [4, 8, 16, 32]),
    "vgg11": ([64, 128, 256, 512, 512, 512], [1, 2, 4, 8, 16, 32]),
    "densenet121": ([64, 256, 512, 1024, 1024], [2, 4, 8, 16, 32]),
    "regnet_y_400mf": ([32, 48, 104, 208, 440], [2, 4, 8, 16, 32]),
}


def conv(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)


class Encoder(nn.Module):
    """Return three feature maps with strides 1, 2 and 4, in any container and order."""

    def __init__(self, give=list, order=(0, 1, 2)):
        super().__init__()
        self.steps = nn.ModuleList([conv(3, 4), conv(4, 6, 2), conv(6, 8, 2)])
        self.give, self.order = give, order

    def forward(self, x):
        maps = []
        for step in self.steps:
            x = step(x).relu()
            maps.append(x)
        return self.give([maps[k] for k in self.order])


class Given(nn.Module):
    """Whatever a function makes of the image."""

    def __init__(self, function):
        super().__init__()
        self.stem = conv(3, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.stem(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_returns_the_measured_feature_maps_and_works_with_every_block(name):
    channels, strides = FAMILIES[name]
    backbone = Backbone(name).eval()
    assert (backbone.channels, backbone.strides) == (channels, strides)
    maps = backbone(torch.randn(1, 3, *SIZE))
    assert [y.shape[1] for y in maps] == channels
    for y, stride in zip(maps, strides, strict=True):
        assert all(abs(m - n / stride) <= 1 for m, n in zip(y.shape[2:], SIZE, strict=True))
    finest = maps[0].shape[2:]
    assert UNetDecoder(backbone, 2, block="single").eval()(maps).shape == (1, 2, *finest)
    assert FeatureFusion(backbone, 5).eval()(maps).shape == (1, 5, *finest)
    assert FeatureFusion(backbone, 8, "attention").eval()(maps).shape == (1, 8, *finest)
    neck = PyramidFusion(backbone, 6).eval()
    assert [y.shape[2:] for y in neck(maps)] == [y.shape[2:] for y in maps]
    pool = PyramidPooling(backbone, 7).eval()
    assert pool(maps[-1]).shape == (1, 7, *maps[-1].shape[2:])


def test_a_classifier_keeps_its_numbers_and_loses_its_head():
    network = torchvision.models.resnet18().eval()
    backbone = Backbone(network).eval()
    x = torch.randn(1, 3, 40, 33)
    deep = network.layer2(
        network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
    )
    torch.testing.assert_close(backbone(x)[2], deep)
    names = set(backbone.state_dict())
    assert "network.layer4.1.conv2.weight" in names
    assert not [name for name in names if "fc" in name]


def test_deeper_levels_that_are_not_asked_for_are_cut_off():
    backbone = Backbone("resnet18", levels=[-4, 0])
    assert backbone.strides == [2, 4]
    assert "layer1" in backbone.table
    assert not [name for name in backbone.state_dict() if "layer2" in name]


def test_measuring_leaves_statistics_and_modes_as_they_were():
    network = torchvision.models.resnet18()
    network.layer1.eval()
    before = copy.deepcopy(network.state_dict())
    Backbone(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network.layer2.training
    assert not network.layer1.training


@pytest.mark.parametrize(
    "give",
    [list, tuple, lambda maps: {f"p{k}": y for k, y in enumerate(maps)}],
    ids=["list", "tuple", "dict"],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_feature_maps_are_finest_first_from_any_container_in_any_order(give, order):
    backbone = Backbone(Encoder(give, order))
    assert (backbone.channels, backbone.strides) == ([4, 6, 8], [1, 2, 4])
    assert [tuple(y.shape) for y in backbone(torch.zeros(2, 3, 21, 14))] == [
        (2, 4, 21, 14),
        (2, 6, 11, 7),
        (2, 8, 6, 4),
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_a_decoder_accepts_feature_maps_of_every_size(height, width):
    torch.manual_seed(0)
    backbone = Backbone(Encoder())
    decoder = UNetDecoder(backbone, 2, block="single", norm=None)
    assert decoder(backbone(torch.zeros(1, 3, height, width))).shape == (1, 2, height, width)


def test_channels_last_is_found_and_turned():
    backbone = Backbone(Given(lambda y: [y.permute(0, 2, 3, 1)]))
    assert backbone.channels == [4]
    assert backbone(torch.zeros(1, 3, 9, 7))[0].shape == (1, 4, 9, 7)


def test_one_feature_map_and_a_fractional_stride_work_where_a_block_supports_them():
    alone = Backbone(conv(3, 4, 2))
    assert (alone.channels, alone.strides) == ([4], [2])
    assert PyramidPooling(alone, 2, norm=None)(alone(torch.zeros(1, 3, 20, 20))[0]).shape[1] == 2
    shrink = Given(lambda y: [y, nn.functional.interpolate(y, scale_factor=2 / 3)])
    broken = Backbone(shrink)
    assert broken.strides == [1, 1.5]
    assert FeatureFusion(broken, 2)(broken(torch.zeros(2, 3, 10, 7))).shape == (2, 2, 10, 7)
    assert PyramidFusion(broken, 2)(broken(torch.zeros(2, 3, 10, 7)))[1].shape == (2, 2, 6, 4)
    with pytest.raises(ValueError, match=r"(?s)twice the stride of the one before, got.*1\.5"):
        UNetDecoder(broken, 2)


def test_strides_differ_per_axis_where_the_network_does():
    backbone = Backbone(nn.Sequential(nn.Conv3d(1, 2, 3, (1, 2, 2), 1)))
    assert (backbone.spatial_dims, backbone.strides) == (3, [(1, 2, 2)])


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_an_image_equal_in_all_channels_has_the_same_output_as_before(channels):
    network = Encoder().double()
    x = torch.randn(1, 1, 12, 9, dtype=torch.float64)
    plain = Backbone(network)(x.expand(-1, 3, -1, -1))
    wider = Backbone(network, in_channels=channels)
    assert wider.in_channels == channels
    for y, expected in zip(wider(x.expand(-1, channels, -1, -1)), plain, strict=True):
        torch.testing.assert_close(y, expected)
    assert network.steps[0].in_channels == 3


def test_repeated_images_keep_the_kernels_of_every_channel():
    network = Encoder()
    x = torch.randn(1, 3, 12, 9)
    twice = Backbone(network, in_channels=6)(x.repeat(1, 2, 1, 1))
    for y, expected in zip(twice, network(x), strict=True):
        torch.testing.assert_close(y, expected)


def test_the_image_is_normalized():
    network = Encoder()
    x = torch.rand(1, 3, 8, 8)
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 2.0, 4.0])
    scaled = (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    backbone = Backbone(network, normalize=(mean.tolist(), deviation.tolist()))
    torch.testing.assert_close(backbone(x), network(scaled))
    assert set(backbone.state_dict()) == {f"network.{name}" for name in network.state_dict()}
    assert Backbone(network, normalize="imagenet").mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )


@pytest.mark.slow
def test_it_trains_copies_compiles_and_exports():
    torch.compiler.reset()
    model = nn.Sequential(Backbone("mobilenet_v3_small", levels=[0, 1, 2]))
    model.append(UNetDecoder(model[0], 1, block="single"))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 45, 37)
    torch.testing.assert_close(model(x), twin(x))
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


class Deep(nn.Module):
    """Maps whose coarsest still has one pixel where the probe is twice as long."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 4, 2)

    def forward(self, x):
        maps = [self.stem(x)]
        for _ in range(6):
            maps.append(nn.functional.max_pool2d(maps[-1], 1, 2))
        return maps


class Padded(nn.Module):
    """Rounds its size up to windows of 7, as networks with windowed attention do."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 4, 4)

    def forward(self, x):
        y = self.stem(x)
        return [nn.functional.pad(y, (0, -y.shape[3] % 7, 0, -y.shape[2] % 7))]


def test_a_stride_is_measured_beyond_every_receptive_field():
    assert Backbone(Deep()).strides == [2, 4, 8, 16, 32, 64, 128]
    assert Backbone(Padded()).strides == [4]
    assert Backbone(Given(lambda y: [nn.functional.max_pool2d(y, 11)])).strides == [11]
    assert Backbone(Given(lambda y: [nn.functional.interpolate(y, scale_factor=0.3)])).strides == [
        pytest.approx(10 / 3)
    ]


class BlocksFirst(nn.Module):
    """Reads blocks of 2 x 2 pixels as channels."""

    def __init__(self):
        super().__init__()
        self.conv = conv(12, 4)

    def forward(self, x):
        return [self.conv(nn.functional.pixel_unshuffle(x, 2))]


class Twisted(nn.Module):
    """Its first layer is not the first that it makes."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv1d(1, 1, 3, padding=1)
        self.second = conv(8, 4, 2)
        self.first = conv(1, 8)

    def forward(self, x):
        y = self.second(self.first(x))
        return [y * self.gate(y.mean((2, 3)).unsqueeze(1)).view(-1, 4, 1, 1)]


def test_channels_of_the_image_do_not_depend_on_the_order_of_the_layers():
    blocks = Backbone(BlocksFirst())
    assert (blocks.in_channels, blocks.channels, blocks.strides) == (3, [4], [2])
    with pytest.raises(ValueError, match=r"in_channels 1 needs .*got BlocksFirst; build it for 1"):
        Backbone(BlocksFirst(), in_channels=1)
    twisted = Backbone(Twisted())
    assert (twisted.in_channels, twisted.spatial_dims, twisted.strides) == (1, 2, [2])


@pytest.mark.slow
def test_it_is_measured_on_the_meta_device_too():
    with torch.device("meta"):
        backbone = Backbone("mobilenet_v3_small", normalize="imagenet")
    assert backbone.strides == FAMILIES["mobilenet_v3_small"][1]
    assert all(p.is_meta for p in backbone.parameters())


class Valued(nn.Module):
    """Looks at values, which tensors without memory do not have."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 4, 2)

    def forward(self, x):
        y = self.stem(x)
        return [y, nn.functional.max_pool2d(y, 2)] if y.sum().item() > -1e9 else [y]


def test_a_network_that_looks_at_values_is_measured_in_memory():
    assert Backbone(Valued()).strides == [2, 4]


def test_measuring_runs_a_copy_and_no_random_number_is_drawn():
    network = Encoder()
    calls = []
    network.register_forward_pre_hook(lambda module, _: calls.append(module))
    state = torch.get_rng_state()
    Backbone(nn.Sequential(nn.Dropout(0.5), network))
    assert torch.equal(torch.get_rng_state(), state)
    assert network not in calls


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backbone("squeezenet1_1", levels=[1, 2], normalize="imagenet"),
        lambda: Backbone(nms.PyramidNetwork(3, 2, 3, 4, return_pyramid=True), levels=[0, 2]),
        pytest.param(
            lambda: Backbone("mobilenet_v3_small", reduced_tail=True, levels=[-1]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["named", "module", "options"],
)
def test_a_saved_backbone_comes_back(make, tmp_path):
    x = torch.randn(1, 3, 40, 33)
    backbone = make()
    nms.save(backbone.eval(), tmp_path / "b.nx")
    again = nms.load(tmp_path / "b.nx").eval()
    assert again.strides == backbone.strides
    for y, expected in zip(again(x), backbone(x), strict=True):
        assert torch.equal(y, expected)


def test_its_config_builds_it_again():
    named = Backbone("squeezenet1_1", in_channels=1, weights=None)
    assert "weights" not in named.config
    assert Backbone(**named.config).channels == named.channels
    cut = Backbone(torchvision.models.resnet18(), levels=[1, 2])
    twin = Backbone(**cut.config)
    assert (twin.strides, twin.channels) == (cut.strides, cut.channels)


def test_options_without_a_name_are_no_arguments():
    with pytest.raises(TypeError, match=r"options need a network given by name, got \['levls'\]"):
        Backbone(Encoder(), levls=[0])


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra")
@pytest.mark.slow
def test_models_of_timm_come_by_name_and_as_modules():
    import timm

    by_name = Backbone("timm/resnet10t")
    assert (by_name.channels, by_name.strides) == ([64, 64, 128, 256, 512], [2, 4, 8, 16, 32])
    assert Backbone("test_resnet.r160_in1k").strides == [2, 4, 8, 16, 32]
    assert Backbone(timm.create_model("resnet10t")).channels == by_name.channels


@pytest.mark.slow
def test_an_inflated_network_returns_the_2d_feature_maps_where_slices_are_equal():
    network = torchvision.models.resnet18().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    flat = Backbone(network, levels=[0, 1])
    full = Backbone(inflate(network), levels=[0, 1])
    assert (full.spatial_dims, full.strides, full.channels) == (3, [2, 4], [64, 64])
    x = torch.randn(1, 3, 20, 17)
    deep = full.eval()(x.unsqueeze(2).expand(-1, -1, 64, -1, -1))
    for y, expected in zip(deep, flat.eval()(x), strict=True):
        torch.testing.assert_close(y[:, :, y.shape[2] // 2], expected, rtol=1e-4, atol=1e-5)


def test_every_kind_of_layer_is_inflated():
    flat = nn.Sequential(
        nn.Conv2d(2, 4, (3, 5), padding=(1, 2), groups=2, bias=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.Dropout2d(0.5),
        nn.MaxPool2d(3, 2, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveMaxPool2d((4, 3)),
    ).double()
    flat.eval()
    x = torch.randn(1, 2, 24, 16, dtype=torch.float64)
    full = inflate(flat[:-1])(x.unsqueeze(2).expand(-1, -1, 24, -1, -1))
    torch.testing.assert_close(full[:, :, 12], flat[:-1](x))
    assert inflate(flat)(x.unsqueeze(2)[:, :, [0] * 8]).shape == (1, 3, 4, 4, 3)
    assert isinstance(flat[0], nn.Conv2d)
    assert isinstance(inflate(nn.AdaptiveAvgPool2d(1)), nn.AdaptiveAvgPool3d)


class Fixed(nn.Module):
    def forward(self, x):
        return [x, torch.zeros(1, 8, 7, 7)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Backbone("resnet0"), "must name a model of torchvision or timm, got 'resnet0'"),
        (
            lambda: Backbone("resnet18", nonsense=1),
            r"'resnet18' must be .* with options \{'nonsense': 1\}, got TypeError: .*'nonsense'",
        ),
        (
            lambda: Backbone("resnet18", pretrained=True, weights_backbone="DEFAULT"),
            "use weights= of Backbone for pretrained ones, got pretrained, weights_backbone",
        ),
        (lambda: Backbone(Fixed()), r"(?s)size follows.*\(1, 8, 7, 7\) .*does not follow the size"),
        (
            lambda: Backbone(Given(lambda y: [y.flatten(2)])),
            r"(?s)every output must be a feature map of 2 spatial axes.*\(1, 4, 9216\)",
        ),
        (
            lambda: Backbone(Given(lambda y: [])),
            "(?s)every output must be a feature map of 2 .*got\noutput",
        ),
        (
            lambda: Backbone(Given(lambda y: [None])),
            r"(?s)every output must be a feature map.*\(\)",
        ),
        (
            lambda: Backbone(Encoder(), levels=[0, 3]),
            r"(?s)numbers of the 3 feature maps, got \[0, 3\].*\(1, 8, 24, 24\) +8  4",
        ),
        (lambda: Backbone(Encoder(), levels=[]), r"numbers of the 3 feature maps, got \[\]"),
        (
            lambda: Backbone(Encoder(), normalize=([0.5], [1.0])),
            r"two lists of 3 numbers, got \(\[0.5\], \[1.0\]\)",
        ),
        (
            lambda: Backbone(Encoder(), in_channels=1, normalize="imagenet"),
            "two lists of 1 numbers, got 'imagenet'",
        ),
        (
            lambda: Backbone(nn.Conv2d(4, 4, 1, groups=4), in_channels=2),
            "in_channels 2 needs a network that begins with a convolution without groups, got Conv2d",
        ),
        (
            lambda: Backbone(nn.Sequential(nn.Flatten(), nn.Linear(12, 1))),
            r"must take images of any size, got RuntimeError from an input of shape \(1, 3, 96, 96\)",
        ),
        (
            lambda: UNetDecoder(Backbone(Encoder(), levels=[0, 2]), 1),
            r"(?s)twice the stride of the one before, got\noutput.*\(1, 8, 24, 24\) +8  4",
        ),
        (
            lambda: UNetDecoder(Backbone(conv(3, 4)), 1),
            r"(?s)two or more feature maps.*\(1, 4, 96, 96\)",
        ),
        (
            lambda: inflate(nn.ConvTranspose2d(1, 1, 3, stride=2)),
            "a multiple of their stride, got ConvTranspose2d",
        ),
        (
            lambda: inflate(nn.Sequential(nn.LPPool2d(2, 2))),
            "modules that have a 3-D counterpart, got 0 LPPool2d",
        ),
        (lambda: inflate(nn.Upsample(2, mode="bicubic")), "a 3-D counterpart, got Upsample"),
        (
            lambda: Backbone(Encoder())(torch.zeros(3, 8, 8)),
            r"2 spatial axes, got shape \(3, 8, 8\)",
        ),
        (
            lambda: Backbone(Encoder())(torch.zeros(1, 1, 8, 8)),
            r"the image must have 3 channels, got shape \(1, 1, 8, 8\)",
        ),
    ],
)
def test_every_message(build, message):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build()


def test_a_network_that_cannot_be_traced_raises():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(3, 4), conv(4, 4, 2)

        def forward(self, x):
            y = self.first(x)
            return self.second(y) if y.sum() > -1e9 else y

    with pytest.raises(ValueError, match="feature maps of Branching cannot be extracted"):
        Backbone(Branching())


def test_without_timm_its_models_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"'resnet10t' is not a torchvision model.*'neurenix_ms\[timm\]'"
    ):
        Backbone("resnet10t")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_unet_is_a_backbone_by_its_encoder(dims, tmp_path):
    network = nms.UNet(3, 1, [4, 8], spatial_dims=dims, norm="group")
    backbone = Backbone(network)
    assert backbone.channels == [4, 8, 8]
    assert backbone.strides == [1, 2, 4]
    x = torch.randn(2, 3, *(16,) * dims)
    for y, expected in zip(backbone(x), network.forward_features(x), strict=True):
        assert torch.equal(y, expected)
    decoder = nms.UNetDecoder(backbone, 1, spatial_dims=dims)
    assert decoder(backbone(x)).shape == (2, 1, *(16,) * dims)
    nms.save(backbone, tmp_path / "b.nx")
    for y, expected in zip(nms.load(tmp_path / "b.nx")(x), backbone(x), strict=True):
        assert torch.equal(y, expected)


def test_a_pyramid_network_is_a_backbone_by_its_encoder():
    backbone = Backbone(nms.PyramidNetwork(3, 2, 3, 4), levels=[1, 2])
    assert (backbone.channels, backbone.strides) == ([8, 16], [2, 4])
