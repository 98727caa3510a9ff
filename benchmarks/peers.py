"""Equivalents in other libraries, with our weights where the architectures agree.

Each function takes our module and returns that of the other library, or skips the benchmark if the
library is not installed (extra `peers`).
"""

import importlib.util
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation.deeplabv3 import ASPP

from benchmarks.plain import with_weights_of
from benchmarks.plain_pyramids import TorchvisionFusion
from neurenix_ms import (
    AtrousPyramidPooling,
    AttentionFusion,
    BidirectionalFusion,
    DeepLabHead,
    HighResolutionNetwork,
    NestedUNet,
    NestedUNetDecoder,
    PyramidFusion,
    PyramidPooling,
    UNet,
    UPerHead,
)
from neurenix_ms.backbones import Backbone

PEERS = ("torchvision", "monai", "smp", "timm", "kornia", "effdet", "torchmetrics")
PEERS += ("ptwt", "pytorch_wavelets")
SLOPE = 0.1  # of the leaky ReLU in MONAI's U-Net


def library(name: str) -> Any:
    """Import a module, or skip the benchmark."""
    return pytest.importorskip(name, reason=f"the peer needs {name.partition('.')[0]}")


def monai_unet(ours: UNet) -> nn.Module:
    """Return MONAI's `BasicUNet`, which has our levels if the first two widths are equal."""
    nets = library("monai.networks.nets")
    assert ours.bottleneck_channels is not None
    widths = (*ours.features, ours.bottleneck_channels, ours.features[0])
    theirs = nets.BasicUNet(ours.spatial_dims, ours.in_channels, ours.out_channels, widths)
    return with_weights_of(ours, theirs)


class MonaiNested(nn.Module):
    """MONAI's `BasicUNetPlusPlus`, with its output or outputs as ours."""

    def __init__(self, network: nn.Module, deep_supervision: bool) -> None:
        super().__init__()
        self.network = network
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs = self.network(x)
        if self.training and self.deep_supervision:
            return list(reversed(outputs))
        return outputs[-1]


def monai_nested(ours: NestedUNet) -> nn.Module:
    """Return MONAI's UNet++, for ours of four levels whose widths are equal once and then double."""
    nets = library("monai.networks.nets")
    widths = [*ours.features, ours.bottleneck_channels]
    theirs = nets.BasicUNetPlusPlus(
        ours.spatial_dims,
        ours.in_channels,
        ours.out_channels,
        (*widths, widths[0]),
        deep_supervision=ours.deep_supervision,
    )
    for level, block in enumerate(ours.encoder.blocks):
        with_weights_of(block, getattr(theirs, f"conv_{level}_0"))
    for level, row in enumerate(ours.nodes.rows):
        for column, node in enumerate(row, start=1):
            with_weights_of(node, getattr(theirs, f"upcat_{level}_{column}"))
    for column, head in enumerate(reversed(ours.branches.heads)):
        with_weights_of(head, getattr(theirs, f"final_conv_0_{4 - column}"))
    return MonaiNested(theirs, ours.deep_supervision).train(ours.training)


def monai_residual(dims: int, widths: tuple[int, ...]) -> nn.Module:
    """Return MONAI's `UNet` of residual units, whose architecture differs from our residual U-Net."""
    nets = library("monai.networks.nets")
    strides = (2,) * len(widths)
    return nets.UNet(dims, 1, 2, (*widths, 2 * widths[-1]), strides, num_res_units=2).eval()


def torchvision_neck(ours: PyramidFusion) -> nn.Module:
    """Return torchvision's feature pyramid."""
    return with_weights_of(ours, TorchvisionFusion(ours.in_channels, ours.out_channels))


def torchvision_aspp(ours: AtrousPyramidPooling) -> nn.Module:
    """The pooling of torchvision's DeepLabV3."""
    theirs = ASPP(ours.in_channels, ours.dilations, ours.out_channels)
    theirs.project[-1] = nn.Identity()  # a dropout of one half
    return with_weights_of(ours, theirs)


class MonaiNeck(nn.Module):
    """MONAI's feature pyramid with a list of feature maps as input."""

    def __init__(self, dims: int, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        blocks = library("monai.networks.blocks.feature_pyramid_network")
        self.pyramid = blocks.FeaturePyramidNetwork(dims, in_channels, out_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return list(self.pyramid({str(i): x for i, x in enumerate(features)}).values())


def monai_neck(ours: PyramidFusion) -> nn.Module:
    """Return MONAI's feature pyramid for any number of spatial axes."""
    theirs = MonaiNeck(ours.spatial_dims, ours.in_channels, ours.out_channels)
    return with_weights_of(ours, theirs)


class SmpViews(nn.Module):
    """The PSP module of segmentation_models_pytorch, with its input as the first channels."""

    def __init__(self, channels: int, bins: list[int]) -> None:
        super().__init__()
        decoder = library("segmentation_models_pytorch.decoders.pspnet.decoder")
        self.views = decoder.PSPModule(channels, sizes=bins)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.views(x).roll(self.channels, dims=1)


def smp_views(ours: PyramidPooling) -> nn.Module:
    """Return the PSP module, for ours with `project=False` and `align_corners=True`."""
    return with_weights_of(ours, SmpViews(ours.in_channels, ours.bins))


class TimmAttention(nn.Module):
    """timm's selective kernel attention over a list of feature maps of one size."""

    def __init__(self, ours: AttentionFusion) -> None:
        super().__init__()
        layers = library("timm.layers.selective_kernel")
        assert ours.channel_scores is not None
        first, _, last = ours.channel_scores
        self.attention = layers.SelectiveKernelAttn(
            ours.out_channels,
            len(ours.in_channels),
            attn_channels=first.out_channels,
            norm_layer=nn.Identity,
        )
        nn.init.zeros_(first.bias)  # timm has no bias here
        nn.init.zeros_(last.bias)  # and none here
        self.attention.fc_reduce.weight.data.copy_(first.weight)
        self.attention.fc_select.weight.data.copy_(last.weight)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = torch.stack(features, dim=1)
        return (maps * self.attention(maps)).sum(dim=1)


class EffdetNeck(nn.Module):
    """The BiFPN of EfficientDet, for feature maps of fixed sizes."""

    def __init__(self, ours: BidirectionalFusion, size: tuple[int, int]) -> None:
        super().__init__()
        effdet = library("effdet.efficientdet")
        methods = {"fast": "fa", "softmax": "attn", None: "sum"}
        config = SimpleNamespace(
            fpn_name=f"{ours.paths.removesuffix('et')}_{methods[ours.weighting]}",
            min_level=0,
            max_level=ours.num_levels - 1,
            num_levels=ours.num_levels,
            image_size=size,
            fpn_channels=ours.out_channels,
            act_type="silu",
            fpn_config=None,
            norm_layer=None,
            norm_kwargs=None,
            pad_type="",
            downsample_type="max",
            upsample_type="nearest",
            apply_resample_bn=True,
            redundant_bias=False,
            fpn_cell_repeats=ours.repeats,
            separable_conv=ours.separable,
            conv_bn_relu_pattern=False,
        )
        self.neck = effdet.BiFpn(config, [{"num_chs": n} for n in ours.in_channels])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return self.neck(list(features))  # which it appends to


def effdet_neck(ours: BidirectionalFusion, size: tuple[int, int]) -> nn.Module:
    """Return effdet's BiFPN, for ours with `projection="edge"` and a finest feature map of this size."""
    theirs = EffdetNeck(ours, size).train(ours.training)
    if ours.extra_projection is not None:
        _copy_projection(next(iter(theirs.neck.resample.values())), ours.extra_projection)
    top = ours.num_levels - 1
    for layer, cell in zip(ours.layers, theirs.neck.cell, strict=True):
        nodes = iter(cell.fnode)
        for level in reversed(range(ours.num_levels)):
            if str(level) in layer.inner:
                edges = _copy_node(next(nodes), layer.inner[str(level)])
                _copy_projection(edges[0], layer.enter[level])
                if level == top - 1 and str(top) not in layer.inner:
                    _copy_projection(edges[1], layer.enter[top])
        for level in range(ours.num_levels):
            if str(level) in layer.outer:
                edges = _copy_node(next(nodes), layer.outer[str(level)])
                if layer.again is not None:
                    _copy_projection(edges[0], layer.again[level])
    return theirs


def _copy_node(theirs: Any, ours: Any) -> list[Any]:
    """Copy the weights of a node, and return the resampling of its inputs."""
    if ours.sum.weights is not None:
        theirs.combine.edge_weights.data.copy_(ours.sum.weights.data)
    conv = theirs.after_combine.conv
    if ours.depthwise is None:
        conv.conv.load_state_dict(ours.conv.state_dict())
    else:
        conv.conv_dw.load_state_dict(ours.depthwise.state_dict())
        conv.conv_pw.load_state_dict(ours.conv.state_dict())
    conv.bn.load_state_dict(ours.norm.state_dict())
    return list(theirs.combine.resample.values())


def _copy_projection(theirs: Any, ours: Any) -> None:
    if hasattr(theirs, "conv"):
        theirs.conv.conv.load_state_dict(ours.conv.state_dict())
        theirs.conv.bn.load_state_dict(ours.norm.state_dict())


def kornia_pyramid(levels: int) -> Any:
    """Return kornia's Gaussian pyramid, which resizes bilinearly where ours subsamples."""
    transform = library("kornia.geometry.transform")
    return lambda x: transform.build_pyramid(x, levels)


def kornia_laplacian(levels: int) -> Any:
    """Return kornia's Laplacian pyramid."""
    transform = library("kornia.geometry.transform")
    return lambda x: transform.build_laplacian_pyramid(x, levels)


def ptwt_wavelet(wavelet: str) -> Any:
    """Return one level of ptwt, which extends the image instead of mirroring it in the lifting steps."""
    ptwt = library("ptwt")
    return lambda x: ptwt.wavedec2(x, wavelet, mode="reflect", level=1)


def ptwt_inverse(wavelet: str, x: Tensor) -> Any:
    """Return the inverse of ptwt for its own coefficients of `x`."""
    ptwt = library("ptwt")
    levels = ptwt.wavedec2(x, wavelet, mode="reflect", level=1)
    return lambda _: ptwt.waverec2(levels, wavelet)


def pytorch_wavelets(wavelet: str) -> Any:
    """Return one level of pytorch_wavelets."""
    return _pytorch_wavelets().DWTForward(J=1, wave=wavelet, mode="symmetric")


def pytorch_wavelets_inverse(wavelet: str, x: Tensor) -> Any:
    """Return the inverse of pytorch_wavelets for its own coefficients of `x`."""
    library = _pytorch_wavelets()
    levels = library.DWTForward(J=1, wave=wavelet, mode="symmetric")(x)
    inverse = library.DWTInverse(wave=wavelet, mode="symmetric")
    return lambda _: inverse(levels)


def _pytorch_wavelets() -> Any:
    # it reads a file through pkg_resources, which recent versions of setuptools do not contain
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = MagicMock()
    return library("pytorch_wavelets")


def timm_blur(kernel_size: int, channels: int) -> nn.Module:
    """Return timm's blur pooling."""
    return library("timm.layers").BlurPool2d(channels, filt_size=kernel_size, stride=2)


def monai_subpixel(channels: int) -> nn.Module:
    """Return MONAI's convolution with pixel shuffling."""
    upsample = library("monai.networks.blocks.upsample")
    return upsample.SubpixelUpsample(2, channels, channels, 2, apply_pad_pool=False)


def monai_transposed(channels: int) -> nn.Module:
    """Return the upsampling of MONAI's attention U-Net."""
    return library("monai.networks.nets.attentionunet").UpConv(2, channels, channels)


def monai_shuffle() -> Any:
    """Return MONAI's pixel shuffling."""
    utils = library("monai.networks.utils")
    return lambda x: utils.pixelshuffle(x, spatial_dims=x.ndim - 2, scale_factor=2)


def monai_unshuffle() -> Any:
    """Return MONAI's pixel unshuffling."""
    utils = library("monai.networks.utils")
    return lambda x: utils.pixelunshuffle(x, spatial_dims=x.ndim - 2, scale_factor=2)


def torchvision_convnext(channels: int) -> nn.Module:
    """torchvision's block of ConvNeXt."""
    return library("torchvision.models.convnext").CNBlock(channels, 1.0, 0.0)


def torchvision_inverted(channels: int) -> nn.Module:
    """torchvision's block of MobileNetV2."""
    block = library("torchvision.models.mobilenetv2").InvertedResidual
    return block(channels, channels, stride=1, expand_ratio=6)


class MonaiGate(nn.Module):
    """MONAI's attention gate, with one tensor in both of its places, and the concatenation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        nets = library("monai.networks.nets.attentionunet")
        self.gate = nets.AttentionBlock(2, channels // 2, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.gate(g=x, x=x), x], dim=1)


def monai_gate(channels: int) -> nn.Module:
    """MONAI's attention gate."""
    return MonaiGate(channels)


class AsList(nn.Module):
    """The feature maps of a network that returns a dict, as a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.network(x).values())


class TimmStreams(nn.Module):
    """timm's HRNet from the first stage on, without its stem, for blocks of our first stage."""

    def __init__(self, ours: HighResolutionNetwork) -> None:
        super().__init__()
        hrnet = library("timm.models.hrnet")
        resnet = library("timm.models.resnet")
        widths = ours.features
        self.branch = nn.ModuleList()
        self.stages = nn.ModuleList()
        for count, stage in enumerate(ours.stages, start=1):
            modules = []
            for module in stage:
                entering = [next(module.parameters()).shape[1], *widths[1:count]]
                depth = [ours.depth] * count
                theirs = hrnet.HighResolutionModule(
                    count, resnet.BasicBlock, depth, entering, widths[:count], "SUM"
                )
                modules.append(_copy_streams(module, theirs))
            self.stages.append(hrnet.SequentialList(*modules))
        for a, layer in zip(widths, ours.branch, strict=False):
            conv = nn.Conv2d(a, layer.conv.out_channels, 3, 2, 1, bias=False)
            theirs = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))
            self.branch.append(with_weights_of(layer, theirs))

    def forward(self, x: Tensor) -> list[Tensor]:
        streams = [x]
        for index, stage in enumerate(self.stages):
            if index:
                streams.append(self.branch[index - 1](streams[-1]))
            streams = stage(streams)
        return streams


def _copy_streams(ours: Any, theirs: Any) -> Any:
    """Copy the blocks along every stream, and the exchange between them."""
    for own, branch in zip(ours.blocks, theirs.branches, strict=True):
        with_weights_of(own, branch)
    if ours.exchange is not None:
        for i, edges in enumerate(ours.exchange.edges):
            others = [f for j, f in enumerate(theirs.fuse_layers[i]) if j != i]
            for edge, fuse in zip(edges, others, strict=True):
                with_weights_of(edge, fuse)
    return theirs


def timm_streams(ours: HighResolutionNetwork) -> nn.Module:
    """Return timm's streams, for ours without a stem and with one number of blocks."""
    return TimmStreams(ours).train(ours.training)


def torchvision_features(network: nn.Module) -> nn.Module:
    """Return torchvision's feature extractor for the four stages of a ResNet."""
    return AsList(create_feature_extractor(network, [f"layer{i}" for i in range(1, 5)]))


def timm_features(name: str) -> tuple[Backbone, nn.Module]:
    """Return our backbone around timm's network, and timm's network itself."""
    network = library("timm").create_model(name, features_only=True).eval()
    return Backbone(network).eval(), network


class SmpDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch and its head over a list that starts at its level."""

    def __init__(self, decoder: nn.Module, head: nn.Module, skipped: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.skipped = skipped

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.head(self.decoder([features[0]] * self.skipped + list(features)))


def smp_upernet(ours: UPerHead) -> nn.Module:
    """UPerNet's decoder, in evaluation; without the norms in front that Xiao et al. do not have."""
    upernet = library("segmentation_models_pytorch.decoders.upernet.decoder")
    width = ours.hidden_channels
    decoder = upernet.UPerNetDecoder([1, 1, *ours.in_channels], len(ours.in_channels) + 1, width)
    decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in ours.in_channels)
    for block, branch in zip(decoder.psp.blocks, ours.context.branches, strict=True):
        conv, norm = block[1][0], block[1][1]
        own = branch[1]
        conv.weight.data.copy_(own.conv.weight)
        if own.conv.bias is None:
            norm.load_state_dict(own.norm.state_dict())
        else:  # a norm that adds the bias
            norm.eps = 0.0
            norm.bias.data.copy_(own.conv.bias)
    projection = ours.context.projection
    _copy_layer(decoder.psp.out_conv, projection.conv.weight, projection.norm)
    lateral = zip(decoder.fpn_lateral_blocks, reversed(ours.laterals), strict=True)
    for theirs, own in lateral:
        _copy_layer(theirs.conv_norm_relu, own.conv.weight, own.norm)
    for theirs, own in zip(decoder.fpn_conv_blocks, reversed(ours.smooth), strict=True):
        _copy_layer(theirs, own.conv.weight, own.norm)
    _copy_layer(decoder.fusion_block, ours.fuse.weight, ours.fuse_norm)
    head = nn.Conv2d(width, ours.out_channels, 1)
    head.load_state_dict(ours.head.conv.state_dict())
    return SmpDecoder(decoder, head, 2).eval()


def _copy_layer(theirs: Any, weight: Tensor, norm: nn.Module) -> None:
    theirs[0].weight.data.copy_(weight)
    theirs[1].load_state_dict(norm.state_dict())


def smp_deeplab(ours: DeepLabHead) -> nn.Module:
    """DeepLabV3+'s decoder; ours with aligned corners, over strides 4 and 16."""
    deeplab = library("segmentation_models_pytorch.decoders.deeplabv3.decoder")
    fine, coarse = ours.in_channels
    decoder = deeplab.DeepLabV3PlusDecoder(
        [1, 1, fine, 1, coarse], 4, ours.hidden_channels, ours.dilations, 16, True, 0.0
    )
    parts = nn.ModuleList([decoder.aspp, decoder.block1, decoder.block2])
    mine = nn.ModuleList([ours.context, ours.refine, ours.fine, ours.join])
    with_weights_of(mine, parts)
    head = nn.Conv2d(ours.hidden_channels, ours.out_channels, 1)
    head.load_state_dict(ours.head.conv.state_dict())
    return SmpDecoder(decoder, head, 2).eval()


def smp_nested(ours: NestedUNetDecoder) -> nn.Module:
    """UNet++'s decoder, without its last block, which enlarges the output once more."""
    decoders = library("segmentation_models_pytorch.decoders.unetplusplus.decoder")
    widths = ours.encoder_channels
    finer = widths[-2::-1]
    decoder = decoders.UnetPlusPlusDecoder([1, *widths], [*finer, 1], len(widths))
    top = len(finer)
    decoder.blocks[f"x_0_{top}"] = nn.Identity()
    for level, row in enumerate(ours.nodes.rows):
        for column, node in enumerate(row, start=1):
            last = top - 1 - level
            theirs = decoder.blocks[f"x_{last + 1 - column}_{last}"]
            first, second = node.block.layers
            # theirs concatenates the upsampled feature map, then the newest node before it, ...
            parts = first.conv.weight.split([*[widths[level]] * column, widths[level + 1]], dim=1)
            _copy_layer(theirs.conv1, torch.cat(parts[::-1], dim=1), first.norm)
            _copy_layer(theirs.conv2, second.conv.weight, second.norm)
    head = nn.Conv2d(widths[0], ours.out_channels, 1)
    head.load_state_dict(ours.branches.heads[-1].conv.state_dict())
    return SmpDecoder(decoder, head, 1).train(ours.training)


def smp_unet() -> nn.Module:
    """Return the ResNet-18 U-Net of segmentation_models_pytorch, whose decoder differs from ours."""
    models = library("segmentation_models_pytorch")
    return models.Unet("resnet18", encoder_weights=None, classes=2).eval()


def smp_fpn() -> nn.Module:
    """Return the ResNet-18 FPN of segmentation_models_pytorch, which differs from ours."""
    models = library("segmentation_models_pytorch")
    return models.FPN("resnet18", encoder_weights=None, classes=2).eval()
