"""Slots of networks: peers, gradients, tiles, per-level lists, and what users bring."""

import pytest
import torch
import torch.nn.functional as F
from ids import readable
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import symbolic_trace
from torchvision.models.convnext import CNBlock
from torchvision.models.mobilenetv2 import InvertedResidual

from neurenix_ms import PyramidNetwork, UNet, UNetDecoder, enable_gradient_checkpointing
from neurenix_ms.execution import TiledModel
from neurenix_ms.layers.blocks import ConvSpec
from neurenix_ms.layers.residual import ConvNeXtBlock, InvertedBlock, PixelGELU, PreActivationBlock
from neurenix_ms.multiscale.named import AttentionGate, Shuffled, TransposedNormAct
from neurenix_ms.training import DeepSupervisionLoss

BLOCKS = ["single", "double", "residual", "preactivation", "convnext", "inverted"]
DOWNS = ["max", "avg", "conv", "blur", "wavelet", "unshuffle", "strided"]
UPS = ["linear", "nearest", "transposed", "transposed_norm", "shuffle", "wavelet"]
SKIPS = ["concat", "sum", "attention"]


def varied(module: nn.Module) -> nn.Module:
    """No parameter at its initial value, no statistics either."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor))
    return module


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 8, 5, 6), (1, 8, 3, 4, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_gelu_with_channels_last_is_that_of_torch(shape, last):
    x = torch.randn(shape, requires_grad=True)
    y = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    got, wanted = PixelGELU()(y), nn.GELU()(x)
    assert got.stride() == y.stride()
    torch.testing.assert_close(got, wanted)
    seed = torch.randn_like(wanted)
    for ours, theirs in zip(*(torch.autograd.grad(z, x, seed) for z in (got, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_convnext_block_is_that_of_torchvision():
    ours = varied(ConvNeXtBlock(8, 8, ConvSpec(kernel_size=7)))
    theirs = CNBlock(8, 1.0, 0.0)
    values = dict(zip(theirs.state_dict(), theirs.state_dict().values(), strict=True))
    mine = ours.state_dict()
    names = ["scale", "depthwise.weight", "depthwise.bias", "norm.weight", "norm.bias"]
    names += ["expand.weight", "expand.bias", "reduce.weight", "reduce.bias"]
    theirs.load_state_dict(
        {
            key: mine[name].reshape(value.shape)
            for (key, value), name in zip(values.items(), names, strict=True)
        }
    )
    x = torch.randn(2, 8, 11, 9)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("widths", [(8, 8), (8, 6)])
def test_an_inverted_block_is_that_of_torchvision(widths: tuple[int, int]):
    ours = varied(InvertedBlock(*widths, ConvSpec(act=nn.ReLU6))).eval()
    theirs = InvertedResidual(*widths, stride=1, expand_ratio=6).eval()
    values = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = torch.randn(2, 8, 11, 9)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_block_of_pre_activation_adds_what_two_layers_compute():
    block = varied(PreActivationBlock(3, 3, ConvSpec(norm="group"))).eval()
    x = torch.randn(2, 3, 7, 6)
    (first, second), (one, two) = block.norms, block.convs
    expected = x + two(F.relu(second(one(F.relu(first(x))))))
    torch.testing.assert_close(block(x), expected)


def test_an_attention_gate_is_that_of_monai():
    nets = pytest.importorskip("monai.networks.nets.attentionunet")
    ours = varied(AttentionGate(6, 4, ConvSpec())).eval()
    theirs = nets.AttentionBlock(2, f_int=3, f_g=4, f_l=6).eval()
    order = ["of_deep", "of_skip", "score"]
    values = [v for name in order for v in getattr(ours, name).state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    skip, deep = torch.randn(2, 6, 7, 5), torch.randn(2, 4, 7, 5)
    expected = torch.cat([theirs(g=deep, x=skip), deep], dim=1)
    torch.testing.assert_close(ours(skip, deep), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_new_shuffle_upsamples_without_a_checkerboard(dims: int):
    up = Shuffled(3, 2, (2,) * dims, ConvSpec(spatial_dims=dims))
    y = up(torch.randn(1, 3, *(4, 5, 6)[:dims]))
    coarse = y[(slice(None), slice(None), *[slice(0, None, 2)] * dims)]
    torch.testing.assert_close(y, F.interpolate(coarse, scale_factor=2))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("down", DOWNS)
@pytest.mark.parametrize("up", UPS)
def test_any_slots_give_the_size_of_the_input(dims: int, down: str, up: str):
    size = (13, 9, 10)[:dims]
    for skip in SKIPS:
        options = {"down": down, "up": up, "skip": skip, "block": "single", "spatial_dims": dims}
        x = torch.randn(1, 2, *size)
        assert UNet(2, 3, [2, 4], **options)(x).shape == (1, 3, *size)
        assert PyramidNetwork(2, 3, 3, 2, **options)(x).shape == (1, 3, *size)


def step(model: nn.Module, x: Tensor, checkpointing: bool) -> list[Tensor]:
    model.zero_grad()
    with enable_gradient_checkpointing(checkpointing):
        y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        *({"block": block, "norm": "batch"} for block in BLOCKS),
        {"skip": "attention", "up": "shuffle", "down": "conv"},
        {"skip": "sum", "up": "wavelet", "down": "wavelet"},
        {"block": ["double", "residual", "single"], "down": "strided"},
        {"up": "transposed_norm", "decoder_block": ["single", "inverted"], "decoder_act": "prelu"},
        {"block": lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True))},
        {
            "down": lambda n: nn.Conv2d(n, n, 2, stride=2),
            "up": lambda n: nn.Upsample(scale_factor=2),
        },
    ],
    ids=readable,
)
def test_checkpointing_leaves_output_and_gradients_as_they_are(options):
    model = varied(UNet(2, 1, [4, 8], **{"norm": "group", **options}))
    x = torch.randn(2, 2, 13, 18)
    for plain, spared in zip(step(model, x, False), step(model, x, True), strict=True):
        torch.testing.assert_close(plain, spared, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"block": "convnext", "kernel_size": 3, "down": "blur", "up": "shuffle"},
        pytest.param(
            {"block": "preactivation", "down": "wavelet", "up": "wavelet", "skip": "sum"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"block": "inverted", "down": "unshuffle", "up": "nearest"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"skip": "attention", "down": "conv", "up": "transposed", "block": "single"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"down": "avg", "stride": [[1, 2], 3], "block": "single"}, marks=pytest.mark.slow
        ),
        {
            "up": "transposed_norm",
            "stride": [[1, 4], 3],
            "block": "single",
            "decoder_norm": "group",
            "decoder_act": "prelu",
        },
        pytest.param(
            {"down": "strided", "stride": [[1, 2], 3], "block": ["double", "single", "residual"]},
            marks=pytest.mark.slow,
        ),
    ],
    ids=readable,
)
def test_tiles_are_equal_to_the_whole(options):
    model = varied(UNet(1, 1, [2, 4], **options)).eval()
    x = torch.randn(1, 1, 77, 60)
    with torch.no_grad():
        torch.testing.assert_close(
            TiledModel(model, tile_size=24)(x), model(x), rtol=1e-4, atol=1e-4
        )


def test_lists_have_an_entry_per_level():
    model = UNet(
        1, 2, [4, 8], spatial_dims=3,
        kernel_size=[[1, 3, 3], 3, 3], stride=[[1, 2, 2], 2], depth=[1, 2, 3],
        block=["single", "residual", "double"], down=["max", "conv"], skip=["sum", "concat"],
    )  # fmt: skip
    shapes = []
    model.level.inner.inner.register_forward_pre_hook(lambda m, x: shapes.append(x[0].shape))
    assert model(torch.randn(1, 1, 5, 17, 16)).shape == (1, 2, 5, 17, 16)
    assert shapes == [(1, 8, 3, 4, 4)]
    assert model.level.encode.layers[0].conv.kernel_size == (1, 3, 3)
    assert len(model.level.inner.encode) == 2
    assert len(model.level.inner.inner.encode) == 3


@pytest.mark.parametrize("network", [UNet, PyramidNetwork, UNetDecoder])
def test_deep_supervision_trains_every_level(network):
    torch.manual_seed(0)
    options = {"deep_supervision": True, "norm": "group"}
    x = torch.randn(2, 1, 21, 16)
    if network is UNetDecoder:
        model = network([3, 4, 5], 2, **options)
        x = [torch.randn(2, n, 21 // k, 16 // k) for n, k in ((3, 1), (4, 2), (5, 4))]
    else:
        model = network(1, 2, [4, 8] if network is UNet else 3, **options)
    outputs = model(x)
    sizes = [tuple(y.shape) for y in outputs]
    assert sizes[:2] == [(2, 2, 21, 16), (2, 2, 10, 8)]
    DeepSupervisionLoss(nn.MSELoss())(outputs, torch.randn(2, 2, 21, 16)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(x), outputs[0])


def test_the_decoder_has_its_own_block_norm_and_activation():
    options = {"up": "transposed_norm", "block": "residual", "act": "silu", "norm": "group"}
    model = UNet(
        1, 1, [4, 6], decoder_block="single", decoder_norm=None, decoder_act="prelu", **options
    )
    encode, decode = model.level.encode, model.level.decode
    kinds = {type(m) for m in encode.modules()} | {type(m) for m in decode.up.modules()}
    assert {nn.SiLU, nn.GroupNorm} <= kinds
    assert nn.PReLU not in kinds
    (layer,) = decode.block.layers
    assert (type(layer.norm), type(layer.act)) == (nn.Identity, nn.PReLU)
    with pytest.raises(ValueError, match="decoder_block must be one value or a list of 2"):
        UNet(1, 1, [4, 6], decoder_block=["single"])
    with pytest.raises(ValueError, match=r"decoder_act must be .*, got 'prelo'"):
        UNet(1, 1, [4, 6], decoder_act="prelo")


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_a_transposed_convolution_with_a_norm_multiplies_the_size(stride: int):
    up = TransposedNormAct(2, 3, (stride, 1), ConvSpec())
    assert up(torch.randn(2, 2, 7, 5)).shape == (2, 3, 7 * stride, 5)
    # every pixel of the result depends on the input
    nn.init.ones_(up.conv.weight)
    assert up.conv(torch.ones(1, 2, 7, 5)).min() > 1


@pytest.mark.parametrize("block", ["single", "residual", "convnext"])
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("skip", SKIPS)
def test_a_decoder_has_every_slot(block: str, up: str, skip: str):
    widths = [4, 4, 4] if skip == "sum" else [4, 6, 5]
    options = {"block": block, "up": up, "skip": skip, "depth": [1, 2, 1], "norm": "group"}
    model = varied(UNetDecoder(widths, 2, **options))
    maps = [torch.randn(1, c, 21 >> k, 16 >> k) for k, c in enumerate(widths)]
    found = step(model, maps, False)
    assert found[0].shape == (1, 2, 21, 16)
    for plain, spared in zip(found, step(model, maps, True), strict=True):
        torch.testing.assert_close(plain, spared, rtol=1e-6, atol=1e-6)


def test_a_decoder_gets_what_a_user_brings():
    called = []

    class Merge(nn.Module):
        def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
            called.append((skip.shape[1], deep.shape[1]))
            return skip * deep.mean(1, keepdim=True)

    model = UNetDecoder(
        [4, 6],
        2,
        block=lambda a, b: nn.Conv2d(a, b, 1),
        up=lambda n: nn.Upsample(scale_factor=(1, 2)),
        skip=lambda a, b: Merge(),
        stride=[[1, 2]],
    )
    called.clear()
    assert model([torch.randn(1, 4, 9, 8), torch.randn(1, 6, 9, 4)]).shape == (1, 2, 9, 8)
    assert called == [(4, 6)]
    with pytest.raises(ValueError, match=r"block must return 4 channels .* got shape"):
        UNetDecoder([4, 6], 2, block=lambda a, b: nn.Conv2d(a, b + 1, 1))


def test_old_names_of_upsampling_are_the_new_ones():
    for bilinear, up in ((True, "linear"), (False, "transposed")):
        torch.manual_seed(0)
        old = UNet(1, 1, [4], bilinear=bilinear)
        torch.manual_seed(0)
        new = UNet(1, 1, [4], up=up)
        assert repr(old) == repr(new)
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True):
            assert torch.equal(a, b)


class Resampled(nn.Module):
    """Linear resampling by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        size = [int(n * self.factor) for n in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", antialias=self.factor < 1)


class Product(nn.Module):
    """A skip times what comes from below."""

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return skip * deep


class Cropped(nn.Module):
    """A merge that loses a row."""

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return skip[:, :, 1:]


def block(in_channels: int, out_channels: int) -> nn.Module:
    """A block of another library."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.SELU())


def test_networks_of_slots_that_a_user_brings():
    options = {
        "block": block,
        "down": lambda n: Resampled(0.5),
        "up": lambda n: Resampled(2),
        "skip": lambda a, b: Product(),
    }
    x = torch.randn(2, 1, 21, 16)
    model = UNet(1, 2, [4, 4], **options)
    assert model(x).shape == (2, 2, 21, 16)
    assert PyramidNetwork(1, 2, 3, **options)(x).shape == (2, 2, 21, 16)
    assert sorted({type(m).__name__ for m in model.modules()} & {"SELU", "Resampled", "Product"})
    twin = UNet(**model.config)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_a_down_may_change_the_channels():
    model = UNet(1, 1, [4, 8], down=lambda n: nn.Conv2d(n, 3 * n, 2, stride=2))
    assert model.level.inner.encode.layers[0].conv.in_channels == 12
    assert model(torch.randn(1, 1, 9, 8)).shape == (1, 1, 9, 8)


SAME = {"block": lambda a, b: nn.Conv2d(a, b + 1, 1)}
SMALLER = {"block": lambda a, b: nn.Conv2d(a, b, 3)}
NOTHING = {"block": lambda a, b: None}
OF_ONE = {"block": lambda a: nn.Identity()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SAME, r"block must return 8 channels .* size \(16, 16\), got shape \(2, 9, 16, 16\)"),
        (SMALLER, r"block must return .* got shape \(2, 8, 14, 14\) of Conv2d"),
        (NOTHING, r"block must make a torch.nn.Module of \(8, 8\), got None"),
        (OF_ONE, r"block must be a callable that makes a module of \(8, 8\)"),
        ({"down": lambda n: nn.Identity()}, r"down must return 4 channels of size \(16, 16\)"),
        ({"up": lambda n: nn.Identity()}, r"up must return 8 .* \(64, 64\) .* \(2, 8, 32, 32\)"),
        ({"skip": lambda a, b: Cropped()}, r"skip must return 8 channels .* \(2, 8, 15, 16\) of"),
        ({"skip": "sum", "bottleneck_channels": 7}, r"skip 'sum' needs equal .* got 8 and 7"),
        ({"down": "wavelet", "stride": 3}, r"down 'wavelet' needs stride 2 .* got \(3, 3\)"),
        ({"up": "wavelet", "stride": [2, [1, 2]]}, r"up 'wavelet' needs stride 2 .* got \(1, 2\)"),
        ({"block": ["single"]}, r"block must be one value or a list of 3, .* got \['single'\]"),
        ({"stride": [2]}, r"stride must be one value or a list of 2, one per level, got \[2\]"),
        ({"stride": [2, [2, 2, 2]]}, r"stride must be one number or 2, got \[2, 2, 2\]"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"depth": [1, 0, 1]}, "depth must be at least 1, got 0"),
        (
            {"kernel_size": [3, [3, 3, 3], 3]},
            r"kernel_size must be one number or 2, got \[3, 3, 3\]",
        ),
        (
            {"deep_supervision": True, "residual_channel": 0},
            "needs residual_channel None, .* got 0",
        ),
        ({"block": "dense"}, r"block must be .* got 'dense'"),
        ({"down": "min"}, r"down must be .* got 'min'"),
        (
            {"down": "strided", "block": "convnext"},
            r"down 'strided' needs one of the blocks .*'residual'\] on the next .*, got 'convnext'",
        ),
        ({"up": "cubic"}, r"up must be .* got 'cubic'"),
        ({"skip": "product"}, r"skip must be .* got 'product'"),
    ],
)
def test_slots_that_do_not_fit_are_refused_at_construction(options, message: str):
    with pytest.raises(ValueError, match=message):
        UNet(1, 1, [4, 8], **options)


class Moody(nn.Module):
    """A block whose channels cannot be known before it has run."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        count = self.channels if float(x.sum()) < 1e9 else 0
        return x[:, :1].expand(-1, count + 1, *x.shape[2:])


def test_a_block_that_depends_on_values_is_refused_at_the_first_call():
    model = UNet(1, 1, [4], block=lambda a, b: Moody(b))
    with pytest.raises(
        ValueError, match=r"block must return 4 channels .* \(1, 5, 8, 6\) of Moody"
    ):
        model(torch.randn(1, 1, 8, 6))


def test_a_size_too_small_for_the_strides_is_refused():
    model = UNet(1, 1, [4, 4], stride=[[1, 2], 3])
    with pytest.raises(ValueError, match=r"product of its strides, \(3, 6\), got \(9, 5\)"):
        model(torch.randn(1, 1, 9, 5))


@pytest.mark.slow
def test_what_a_user_brings_is_compiled_exported_and_run_in_tiles():
    options = {
        "block": block,
        "down": lambda n: nn.AvgPool2d(2),
        "up": lambda n: nn.Upsample(scale_factor=2),
        "skip": lambda a, b: Product(),
    }
    model = UNet(1, 1, [4, 4], **options).eval()
    x, other = torch.randn(1, 1, 37, 26), torch.randn(1, 1, 60, 51)
    with torch.no_grad():
        expected = model(other)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        compiled(x)
        torch.testing.assert_close(compiled(other), expected)
        axes = {2: Dim("height", min=8, max=256), 3: Dim("width", min=8, max=256)}
        program = export(model, (x,), dynamic_shapes=(axes,)).module()
        torch.testing.assert_close(program(other), expected)
        torch.testing.assert_close(symbolic_trace(model)(other), expected)
        torch.testing.assert_close(TiledModel(model, tile_size=24)(other), expected)
