"""Measured channels and strides equal those stated by timm and torchvision."""

import pytest
import torch

from neurenix_ms import UNetDecoder
from neurenix_ms.backbones import Backbone

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

FAMILIES = [
    "convnext_atto",
    "davit_tiny",
    "dla46_c",
    "eca_nfnet_l0",
    "edgenext_xx_small",
    "efficientnet_lite0",
    "efficientvit_b0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "mambaout_femto",
    "mobilenetv3_small_050",
    "mobilevitv2_050",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnety_002",
    "repvgg_a0",
    "resnet10t",
    "resnetv2_18",
    "selecsls42",
    "sequencer2d_s",
    "skresnet18",
    "starnet_s1",
    "tiny_vit_5m_224",
    "tresnet_m",
    "vgg11",
]
SEGMENTERS = ["fcn_resnet50", "lraspp_mobilenet_v3_large"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_measured_is_what_timm_states(name: str):
    network = timm.create_model(name, features_only=True, pretrained=False)
    backbone = Backbone(network).eval()
    assert backbone.strides == network.feature_info.reduction()
    assert backbone.channels == network.feature_info.channels()
    assert backbone.in_channels == 3
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [y.shape[1] for y in maps] == backbone.channels


def test_the_receptive_field_of_the_coarsest_level_may_exceed_the_probe():
    build = torchvision.models.detection.backbone_utils.resnet_fpn_backbone
    backbone = Backbone(build(backbone_name="resnet18", weights=None))
    assert backbone.strides == [4, 8, 16, 32, 64]
    assert backbone.channels == [256] * 5


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_is_built_without_a_download(name: str, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was asked for")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert Backbone(name).strides == [1]


def test_options_go_to_timm_and_into_the_config():
    backbone = Backbone("timm/resnet10t", output_stride=8, levels=[0, 2, 3])
    assert backbone.strides == [2, 8, 8]
    assert backbone.config["output_stride"] == 8
    assert Backbone(**backbone.config).strides == [2, 8, 8]
    shaped = Backbone("timm/resnet10t", in_chans=5)
    assert (shaped.in_channels, shaped.config["in_channels"]) == (5, 5)


def test_the_message_for_a_fixed_size_names_the_solution():
    with pytest.raises(
        ValueError, match=r"create_model\(\.\.\., img_size=, strict_img_size=False\)"
    ):
        Backbone("timm/swin_tiny_patch4_window7_224")
    backbone = Backbone("timm/swin_tiny_patch4_window7_224", img_size=96, strict_img_size=False)
    assert backbone.strides == [4, 8, 16, 32]
    assert UNetDecoder(backbone, 1, block="single")(backbone(torch.zeros(1, 3, 64, 96))).shape == (
        1,
        1,
        16,
        24,
    )


def test_a_network_that_reads_blocks_of_pixels_is_measured_but_not_changed():
    backbone = Backbone("timm/tresnet_m")
    assert (backbone.in_channels, backbone.strides) == (3, [4, 8, 16, 32])
    assert Backbone("timm/tresnet_m", in_chans=1).in_channels == 1
    with pytest.raises(ValueError, match=r"in_channels 1 needs .*timm does with in_chans=1"):
        Backbone("timm/tresnet_m", in_channels=1)
