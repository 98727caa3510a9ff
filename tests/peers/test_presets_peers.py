"""Presets equal the networks they are named after, with the weights of ours, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork

from benchmarks.peers import effdet_neck, monai_unet, smp_deeplab, smp_nested, smp_upernet
from benchmarks.plain import with_weights_of
from neurenix_ms import create


def scrambled(model: nn.Module) -> nn.Module:
    """In float64, with no parameter and no statistic at its initial value."""
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model.double().eval()


def pyramid(widths: list[int], size: tuple[int, int], step: int = 1) -> list[Tensor]:
    return [
        torch.randn(2, c, *(max(1, n >> step * k) for n in size), dtype=torch.float64)
        for k, c in enumerate(widths)
    ]


def equal(ours, theirs, x) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-9, rtol=1e-9)


def dynunet(ours: nn.Module) -> nn.Module:
    """Return MONAI's DynUNet with our weights: its decoder concatenates in the other order."""
    nets = pytest.importorskip("monai.networks.nets")
    dims = ours.spatial_dims
    per_level = [[n] * dims if isinstance(n, int) else n for n in ours.stride]
    kernels = [[n] * dims if isinstance(n, int) else n for n in ours.kernel_size]
    theirs = nets.DynUNet(
        dims, ours.in_channels, ours.out_channels, kernels, [[1] * dims, *per_level], per_level,
        filters=[*ours.features, ours.bottleneck_channels], trans_bias=True,
    ).double()  # fmt: skip

    def fill(target: nn.Module, values: list[Tensor]) -> None:
        names = list(target.state_dict())
        target.load_state_dict(dict(zip(names, values, strict=True)))

    def layers(block: nn.Module) -> list[Tensor]:
        parts = [*(layer.conv for layer in block.layers), *(layer.norm for layer in block.layers)]
        return [value for part in parts for value in part.state_dict().values()]

    level, encoders, decoders = ours.level, [], []
    while level is not None:
        encoders.append(level.encode)
        decoders.append(level.decode)
        level = level.inner
    blocks = [theirs.input_block, *theirs.downsamples, theirs.bottleneck]
    for block, encode in zip(blocks, encoders, strict=True):
        fill(block, layers(encode))
    for up, decode in zip(reversed(theirs.upsamples), decoders[:-1], strict=True):
        fill(up.transp_conv, list(decode.up.state_dict().values()))
        first, *others = layers(decode.block)
        skip, deep = first.chunk(2, dim=1)
        fill(up.conv_block, [torch.cat([deep, skip], dim=1), *others])
    fill(theirs.output_block, list(ours.head.conv.state_dict().values()))
    return theirs.eval()


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        # in DynUNet, a decoder has the kernels of the next coarser level
        (
            "nnunet_3d_fullres",
            {"features": [4, 6, 8, 10, 10], "kernel_size": [3] * 6},
            (16, 64, 64),
        ),
        (
            "nnunet_2d",
            {"features": [4, 6, 8, 10, 10, 10, 10], "kernel_size": [3] * 8, "stride": [2] * 7},
            (256, 256),
        ),
    ],
)
def test_nnunet_is_dynunet(name: str, options: dict, size: tuple[int, ...]):
    ours = scrambled(create(name, bottleneck_channels=10, conv_bias=False, **options))
    equal(ours, dynunet(ours), torch.randn(1, 1, *size, dtype=torch.float64))


def test_basic_unet_is_that_of_monai():
    pytest.importorskip("monai")
    ours = scrambled(create("basic_unet", features=[4, 4, 8, 16], bottleneck_channels=32))
    theirs = monai_unet(ours).double()
    for module in theirs.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.01
    equal(ours, theirs, torch.randn(1, 1, 32, 48, 32, dtype=torch.float64))


def test_basic_unet_has_the_widths_of_monai():
    nets = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        theirs = nets.BasicUNet(3, 1, 2)
        ours = create("basic_unet")
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_the_gates_of_attention_unet_have_the_widths_of_monai():
    nets = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        theirs = nets.AttentionUnet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2))
        ours = create("attention_unet")
    gates = [
        sorted(tuple(p.shape) for p in gate.parameters())
        for model, kind in ((ours, "AttentionGate"), (theirs, "AttentionBlock"))
        for gate in model.modules()
        if type(gate).__name__ == kind
    ]
    assert len(gates) == 8
    assert sorted(gates[:4]) == sorted(gates[4:])


def test_the_gates_of_attention_unet_are_those_of_monai():
    """The networks differ: MONAI's decoder has other norms and activations than its encoder."""
    module = pytest.importorskip("monai.networks.nets.attentionunet")
    ours = scrambled(create("attention_unet", features=[4, 6], bottleneck_channels=8))
    gates = [m for m in ours.modules() if type(m).__name__ == "AttentionGate"]
    for gate, width in zip(gates, (6, 4), strict=True):
        theirs = module.AttentionBlock(3, width // 2, width, width).double()
        for mine, part in ((gate.of_skip, theirs.W_x), (gate.of_deep, theirs.W_g)):
            with_weights_of(mine, part)
        with_weights_of(gate.score, theirs.psi)
        skip, deep = torch.randn(2, 2, width, 5, 6, 7, dtype=torch.float64)
        weighted = theirs.eval()(deep, skip)
        torch.testing.assert_close(gate(skip, deep), torch.cat([weighted, deep], dim=1))


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_unet_is_that_of_monai(dims: int):
    """The weights of MONAI's network are loaded into ours; its instance norms have none."""
    nets = pytest.importorskip("monai.networks.nets")
    theirs: Any = scrambled(nets.AttentionUnet(dims, 1, 2, (4, 6, 8, 10), (2, 2, 2)))
    options = {"features": [4, 6, 8], "bottleneck_channels": 10, "spatial_dims": dims}
    ours: Any = create("attention_unet_monai", **options).double()
    level, (encode, layer, tail) = ours.level, theirs.model
    while level.inner is not None:
        up, skip, (merge,) = level.decode.up, level.decode.skip, level.decode.block.layers
        gate = layer.attention
        for source, target in (
            (encode, level.encode),
            (gate.W_x, skip.of_skip),
            (gate.W_g, skip.of_deep),
            (gate.psi, skip.score),
            (layer.upconv, up),
            (layer.merge.conv, merge.conv),
            (layer.merge.adn.A, merge.act),
        ):
            with_weights_of(source, target)
        encode, level = layer.submodule, level.inner
        if level.inner is not None:
            encode, layer = encode
    with_weights_of(encode, level.encode)
    with_weights_of(tail, ours.head)
    equal(ours.eval(), theirs, torch.randn(2, 1, *(16, 24, 32)[:dims], dtype=torch.float64))


def test_attention_unet_has_the_widths_of_monai():
    nets = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        theirs = nets.AttentionUnet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2))
        ours = create("attention_unet_monai")
    of_norms = sum(2 * width for width in (16, 32, 64, 128))
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count + of_norms


def test_upernet_head_is_that_of_smp():
    pytest.importorskip("segmentation_models_pytorch")
    widths = [8, 12, 16, 6]
    ours = scrambled(create("upernet_head", in_channels=widths, hidden_channels=10))
    theirs = smp_upernet(ours).double()
    equal(ours, theirs, pyramid(widths, (37, 53)))


def test_nested_unet_decoder_is_that_of_smp():
    pytest.importorskip("segmentation_models_pytorch")
    ours = scrambled(create("nested_unet_decoder", encoder_channels=[4, 6, 8]))
    equal(ours, smp_nested(ours).double(), pyramid([4, 6, 8], (32, 48)))


def test_deeplabv3plus_head_is_that_of_smp():
    pytest.importorskip("segmentation_models_pytorch")
    ours = scrambled(create("deeplabv3plus_head", in_channels=[8, 16], hidden_channels=12))
    # both have 48 channels of the finer feature map
    equal(ours, smp_deeplab(ours).double(), pyramid([8, 16], (32, 48), step=2))


def test_fpn_is_that_of_torchvision():
    ours = scrambled(create("fpn", in_channels=[4, 6, 8], out_channels=5))
    theirs = with_weights_of(ours, FeaturePyramidNetwork([4, 6, 8], 5).double())
    names = [f"{i}" for i in range(3)]
    features = pyramid([4, 6, 8], (32, 48))
    equal(ours, lambda x: list(theirs(dict(zip(names, x, strict=True))).values()), features)


def test_bifpn_d0_is_that_of_effdet():
    pytest.importorskip("effdet")
    ours = scrambled(create("bifpn_d0", in_channels=[8, 12, 16], out_channels=6))
    theirs = effdet_neck(ours, (64, 48)).double()
    equal(ours, theirs, pyramid([8, 12, 16], (64, 48)))


def test_deeplabv3_aspp_is_that_of_torchvision():
    ours = scrambled(create("deeplabv3_aspp", in_channels=6, out_channels=5))
    theirs = ASPP(6, [12, 24, 36], 5).double()
    theirs.project[-1] = nn.Identity()
    equal(ours, with_weights_of(ours, theirs), torch.randn(2, 6, 40, 44, dtype=torch.float64))
