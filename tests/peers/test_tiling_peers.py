"""Networks of MONAI, smp, timm and torchvision in tiles equal the whole image, or raise."""

import copy
import re
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.execution.run.setting import settle

monai = pytest.importorskip("monai.networks.nets")
smp = pytest.importorskip("segmentation_models_pytorch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision.models")

EXACT = 1e-9  # of the output's standard deviation, in float64
FLAT, DEEP, COLOR = (1, 1, 64, 32), (1, 1, 32, 16, 16), (1, 3, 128, 64)
Make = Callable[[], nn.Module]

VIT = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 4}
MONAI: dict[str, tuple[Make, tuple[int, ...]]] = {
    "UNet": (lambda: monai.UNet(2, 1, 2, (4, 8, 16, 32), (2, 2, 2)), FLAT),
    "UNet, residual": (
        lambda: monai.UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
        FLAT,
    ),
    "UNet, 3-D": (lambda: monai.UNet(3, 1, 2, (4, 8, 16), (2, 2)), DEEP),
    "BasicUNet": (lambda: monai.BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), FLAT),
    "BasicUNetPlusPlus": (lambda: monai.BasicUNetPlusPlus(2, 1, 2, (4, 4, 8, 8, 8, 4)), FLAT),
    "AttentionUnet": (lambda: monai.AttentionUnet(2, 1, 2, (4, 8, 16, 32), (2, 2, 2)), FLAT),
    "AttentionUnet, 3-D": (lambda: monai.AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)), DEEP),
    "DynUNet": (lambda: monai.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), FLAT),
    "SegResNet": (lambda: monai.SegResNet(2, 8, 1, 2), FLAT),
    "RegUNet": (lambda: monai.RegUNet(2, 1, 4, 2), FLAT),
    "AutoEncoder": (lambda: monai.AutoEncoder(2, 1, 1, (4, 8), (2, 2)), FLAT),
    "UNETR": (lambda: monai.UNETR(1, 2, (32, 32, 32), **VIT), (1, 1, 32, 32, 32)),
    "UNETR, 2-D": (lambda: monai.UNETR(1, 2, (64, 64), spatial_dims=2, **VIT), (1, 1, 64, 64)),
    "SwinUNETR": (
        lambda: monai.SwinUNETR(1, 2, feature_size=12, spatial_dims=2),
        (1, 1, 64, 64),
    ),
    "DenseNet121": (lambda: monai.DenseNet121(2, 1, 2), FLAT),
}
DECODERS = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3"]
DECODERS += ["DeepLabV3Plus", "PAN", "UPerNet", "Segformer"]
FAMILIES = ["resnet18", "mobilenetv3_small_100", "convnext_atto", "regnetx_002", "densenet121"]
FAMILIES += ["hrnet_w18_small", "ghostnet_050", "efficientvit_b0", "mobilevitv2_050", "repvgg_a0"]
FAMILIES += ["poolformer_s12", "focalnet_tiny_srf", "edgenext_xx_small", "pvt_v2_b0", "dla46_c"]
SEGMENTATION = ["fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"]
BACKBONES = ["mobilenet_v2", "mobilenet_v3_small", "vgg11", "squeezenet1_0", "convnext_tiny"]


def decoder(name: str, channels: int = 1) -> nn.Module:
    return getattr(smp, name)("resnet18", encoder_weights=None, in_channels=channels, classes=2)


def segmentation(name: str) -> nn.Module:
    make = getattr(torchvision.segmentation, name)
    return make(weights=None, weights_backbone=None)


NETWORKS: dict[str, tuple[Make, tuple[int, ...]]] = {
    **{f"monai {name}": case for name, case in MONAI.items()},
    **{f"smp {name}": (lambda n=name: decoder(n), (1, 1, 128, 128)) for name in DECODERS},
    **{
        f"timm {name}": (lambda n=name: timm.create_model(n, features_only=True), COLOR)
        for name in FAMILIES
    },
    **{f"torchvision {n}": (lambda n=n: segmentation(n), COLOR) for n in SEGMENTATION},
    **{
        f"torchvision {n}": (lambda n=n: getattr(torchvision, n)(weights=None).features, COLOR)
        for n in BACKBONES
    },
    "torchvision vit_b_32": (lambda: torchvision.vit_b_32(weights=None), (1, 3, 224, 224)),
    "torchvision resnet18": (lambda: torchvision.resnet18(weights=None), COLOR),
}
# without layers that depend on the whole image
TAKEN = {f"monai {name}" for name in list(MONAI)[:11]} | {"timm resnet18", "timm regnetx_002"}
TAKEN |= {"smp Unet", "smp UnetPlusPlus", "smp Linknet", "torchvision fcn_resnet50"}
TAKEN |= {"torchvision mobilenet_v2", "torchvision vgg11", "timm densenet121"}
TRAINED = ["monai UNet", "monai AttentionUnet", "monai UNet, 3-D", "smp Unet", "timm resnet18"]


def apart(wanted: object, got: object) -> float:
    pairs = zip(tree_leaves(wanted), tree_leaves(got), strict=True)
    return max(float((a - b).abs().max() / (a.std() + 1e-9)) for a, b in pairs)


def tile(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Two tiles, beside each other along the first axis."""
    return (shape[2] // 2, *shape[3:])


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_equal_or_raise_with_the_name_of_a_layer(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)
    tiled = TiledModel(model, tile(shape), spatial_dims=len(shape) - 2)
    try:
        got = tiled(x)
    except ValueError as error:
        assert name not in TAKEN, error  # noqa: PT017
        assert re.search(r"'[\w.]+' \(\w+\)|got [A-Z]\w+ |in [A-Z]\w+ ", str(error))  # noqa: PT017
        assert re.search("replace it|remove it|run it on", str(error))  # noqa: PT017
        return
    assert apart(wanted, got) < EXACT


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("whole", ["auto", ()])
def test_networks_in_train_mode(name, whole):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = without_dropout(make().double().train())
    x = torch.randn(2, *shape[1:], dtype=torch.float64)
    with torch.no_grad():
        wanted = copy.deepcopy(model)(x)
    tiled = TiledModel(model, tile(shape), spatial_dims=len(shape) - 2, whole=whole)
    assert apart(wanted, tiled(x)) < EXACT


@pytest.mark.parametrize("name", ["monai UNet", "monai AttentionUnet", "monai UNet, 3-D"])
@pytest.mark.parametrize("whole", ["auto", ()])
def test_gradients_of_networks(name, whole):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    plain = without_dropout(make().double().train())
    other = copy.deepcopy(plain)
    x = torch.randn(2, *shape[1:], dtype=torch.float64)
    target = torch.randn(2, 2, *shape[2:], dtype=torch.float64)
    nn.functional.mse_loss(plain(x), target).backward()
    accumulate_gradients(other, x, target, nn.functional.mse_loss, tile(shape), whole=whole)
    grads = [(p.grad, q.grad) for p, q in zip(plain.parameters(), other.parameters(), strict=True)]
    most = max(a.abs().max() for a, _ in grads if a is not None)
    for a, b in grads:
        if a is not None:
            assert (a - b).abs().max() < 1e-8 * most


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_planned_or_raise_within_ten_seconds(name):
    torch.set_num_threads(1)
    model = decoder(name).eval()
    settle(decoder("Linknet").eval(), (1, 1, 64, 64), torch.empty(0), 32, (), None)  # imports
    start = time.process_time()
    try:
        settle(model, (1, 1, 256, 256), torch.empty(0), 64, "auto", None)
    except ValueError as error:
        assert "replace it" in str(error)  # noqa: PT017
    assert time.process_time() - start < 10 * 1.5  # a busy machine takes longer for the same
