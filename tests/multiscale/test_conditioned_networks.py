"""Networks whose blocks are conditioned on a vector."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from neurenix_ms import (
    FiLM,
    HighResolutionNetwork,
    MultiScaleModel,
    NestedUNet,
    NestedUNetDecoder,
    PyramidNetwork,
    UNet,
    UNetDecoder,
    enable_gradient_checkpointing,
    load,
    save,
)
from neurenix_ms.meter import peak_tensor_bytes

NORMS = ["batch", "group", None]
BLOCKS = ["single", "double", "residual", "preactivation", "convnext", "inverted"]


def high_resolution(**options) -> HighResolutionNetwork:
    """Return a network of three streams, whose kernels have one size."""
    options.pop("kernel_size", None)
    return HighResolutionNetwork(2, 1, [4, 4, 6], stem_reductions=0, **options)


NETWORKS = {
    "UNet": lambda **options: UNet(2, 1, [4, 8], **options),
    "PyramidNetwork": lambda **options: PyramidNetwork(2, 1, 3, 4, **options),
    "NestedUNet": lambda **options: NestedUNet(2, 1, [4, 8], **options),
    "HighResolutionNetwork": lambda **options: high_resolution(**options),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
FIRST = ("UNet",)  # the others compile and export the same blocks
SLOW_BUT_FIRST = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in NETWORKS]
)


def stirred(model: nn.Module) -> nn.Module:
    """The module with no parameter at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def conditioned(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return stirred(NETWORKS[name](condition_channels=3, **options))


# every block and norm in two axes, the others in turn; in three axes they are slow
STARTS = [
    pytest.param(dims, block, norm, marks=[pytest.mark.slow] if dims == 3 else [])
    for dims, number in itertools.product((1, 2, 3), range(len(BLOCKS) * len(NORMS)))
    for block, norm in [(BLOCKS[number // len(NORMS)], NORMS[number % len(NORMS)])]
    if dims == 2 or number % 4 == dims
]


@EVERY
@pytest.mark.parametrize(("dims", "block", "norm"), STARTS)
def test_it_starts_as_if_there_was_no_condition(name: str, dims: int, block: str, norm):
    options = {"spatial_dims": dims, "block": block, "norm": norm, "depth": 2, "kernel_size": 3}
    options["act"] = "elu"  # no unit is dead
    torch.manual_seed(0)
    plain = NETWORKS[name](**options)
    torch.manual_seed(0)
    model = NETWORKS[name](condition_channels=3, **options)
    x, z = torch.randn(2, 2, *(9, 11, 5)[:dims]), torch.randn(2, 3)
    assert torch.equal(model(x, z), plain(x))
    films = [m for m in model.modules() if isinstance(m, FiLM)]
    added = {id(p) for film in films for p in film.parameters()}
    assert sum(id(p) not in added for p in model.parameters()) == len(list(plain.parameters()))
    # every block depends on the condition
    wanted = model(x, z)
    for film in films:
        nn.init.ones_(film.bias)
        assert not torch.equal(model(x, z), wanted)
        nn.init.zeros_(film.bias)


@EVERY
def test_samples_have_conditions_of_their_own(name: str):
    model = conditioned(name).eval().double()
    x, z = torch.randn(3, 2, 13, 10).double(), torch.randn(3, 3).double()
    for b in range(3):
        torch.testing.assert_close(model(x, z)[b : b + 1], model(x[b : b + 1], z[b : b + 1]))


@EVERY
def test_checkpointing_drops_the_conditioned_feature_maps(name: str):
    options = {"remember": False} if "remember" in NETWORKS[name]().config else {}
    model = conditioned(name, norm="batch", act="gelu", **options)
    twin = copy.deepcopy(model)
    x, z = torch.randn(2, 2, 64, 48), torch.randn(2, 3, requires_grad=True)

    def step(model: nn.Module, enabled: bool) -> None:
        model.zero_grad()
        with enable_gradient_checkpointing(enabled):
            loss = model(x, z).square().mean()
        loss.backward()

    plain = peak_tensor_bytes(lambda: step(model, False))
    wanted, z.grad = z.grad, None
    assert peak_tensor_bytes(lambda: step(twin, True)) < 0.75 * plain
    assert torch.equal(z.grad, wanted)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@SLOW_BUT_FIRST
@pytest.mark.parametrize(
    "block",
    ["double", *(pytest.param(name, marks=pytest.mark.slow) for name in ("convnext", "inverted"))],
)
def test_traced_exported_and_compiled(name: str, block: str):
    model = conditioned(name, block=block, norm="group", kernel_size=3).eval()
    x, z = torch.randn(2, 2, 32, 24), torch.randn(2, 3)
    axes = [Dim(f"axis{k}", min=8, max=256) for k in range(2)]
    shapes: Any = ({2: axes[0], 3: axes[1]}, {})
    program = export(model, (x, z), dynamic_shapes=shapes).module()
    traced = torch.fx.symbolic_trace(model)
    ways = [program, traced, torch.jit.trace(model, (x, z), check_trace=False)]
    if block == "double":
        ways.append(torch.compile(model, fullgraph=True, backend="eager"))
    for size in ((32, 24), (19, 37)):
        x, z = torch.randn(2, 2, *size), torch.randn(2, 3)
        for way in ways:
            torch.testing.assert_close(way(x, z), model(x, z))
    with pytest.raises(ValueError, match="condition must be a tensor"):
        traced(x)


@EVERY
def test_saved_and_loaded(name: str, tmp_path):
    model = conditioned(name).eval()
    save(model, tmp_path / "model.pt")
    x, z = torch.randn(2, 2, 16, 16), torch.randn(2, 3)
    assert torch.equal(load(tmp_path / "model.pt").eval()(x, z), model(x, z))


def test_features_and_deep_supervision_are_conditioned():
    for model in (conditioned("UNet"), conditioned("PyramidNetwork")):
        x, z = torch.randn(2, 2, 16, 20), torch.randn(2, 3)
        model.eval()(x, z)
        recall = "get_encoder_features" if isinstance(model, UNet) else "get_features"
        for a, b in zip(model.forward_features(x, z), getattr(model, recall)(), strict=True):
            assert torch.equal(a, b)
        other = model.forward_features(x, z + 1)
        assert not any(
            torch.equal(a, b) for a, b in zip(model.forward_features(x, z), other, strict=True)
        )
    deep = stirred(UNet(2, 1, [4, 8], condition_channels=3, deep_supervision=True))
    assert len(deep(x, z)) == 2


def test_stem_branches_exchanges_and_head_of_a_network_of_streams_are_conditioned():
    model = HighResolutionNetwork(2, 1, [4, 4, 6], stem_channels=4, condition_channels=3)
    x, z = torch.randn(2, 2, 45, 38), torch.randn(2, 3)
    model(x, z).square().mean().backward()
    films = {n: m for n, m in model.named_modules() if isinstance(m, FiLM)}
    for part in ("stem", "branch", "stages", "exchange", "head"):
        assert any(part in name.split(".") for name in films), part
    assert all(film.weight.grad.abs().max() > 0 for film in films.values())


def test_a_pruned_network_keeps_its_condition():
    model = conditioned("NestedUNet", deep_supervision=True)
    x, z = torch.randn(2, 2, 16, 20), torch.randn(2, 3)
    assert len(model(x, z)) == 2
    model.eval()
    nodes = model.nodes(model.encoder(x, z), z)
    assert torch.equal(model.pruned(1)(x, z), model.branches.heads[0](nodes[0]))


@pytest.mark.parametrize("kind", [UNetDecoder, NestedUNetDecoder])
def test_a_decoder_is_conditioned(kind):
    decoder = stirred(kind([4, 8], 1, condition_channels=3)).eval()
    maps = [torch.randn(2, 4, 9, 7), torch.randn(2, 8, 4, 3)]
    z = torch.randn(2, 3)
    assert not torch.allclose(decoder(maps, z), decoder(maps, -z))
    with pytest.raises(ValueError, match=r"shape \(B, 3\).*got None"):
        decoder(maps)


def test_a_model_at_several_scales_passes_the_condition_to_its_network():
    network = conditioned("UNet").eval()
    x, z = torch.randn(2, 2, 16, 16), torch.randn(2, 3)
    model = MultiScaleModel([1.0], network, "mean").eval()
    assert torch.equal(model(x, z), network(x, z))
    several = MultiScaleModel([1.0, 0.5], network, "attention", channels=1).eval()
    assert several.attention_weights(x, z).shape == (2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"base_model whose forward has .* shape \(2, 3\)"):
        MultiScaleModel([1.0], nn.Identity(), "mean")(x, z)


@EVERY
def test_unfit_conditions_are_refused(name: str):
    model, x = conditioned(name), torch.randn(2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"shape \(B, 3\), one vector per sample, got None"):
        model(x)
    with pytest.raises(ValueError, match=r"batch of 2, got shape \(1, 3\)"):
        model(x, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="must have the dtype of the input"):
        model.forward_features(x, torch.zeros(2, 3).double())
    with pytest.raises(
        ValueError, match=r"condition_channels=None, got a tensor of shape \(2, 3\)"
    ):
        NETWORKS[name]()(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="condition_channels must be at least 1, got 0"):
        NETWORKS[name](condition_channels=0)


def test_autocast_takes_a_condition_of_lower_precision():
    model, x, z = conditioned("UNet").eval(), torch.randn(2, 2, 16, 16), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x, z.bfloat16())
    assert (low.float() - model(x, z)).abs().mean() < 0.05 * model(x, z).abs().mean() + 1e-3


class Own(nn.Module):
    """A block of the user that takes a condition."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = FiLM(3, out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.film(self.conv(x), emb).relu_()


def plain_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


@EVERY
@pytest.mark.parametrize("depth", [1, 2])
def test_a_block_of_the_user_gets_the_condition_if_it_takes_one(name: str, depth: int):
    model = conditioned(name, block=[Own, "single", plain_block], depth=depth)
    films = [m for m in model.modules() if isinstance(m, FiLM)]
    assert any(m.channels == 4 for m in films)
    x, z = torch.randn(2, 2, 16, 16), torch.randn(2, 3, requires_grad=True)
    wanted = model(x, z)
    wanted.sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is not None for p in model.parameters())
    with enable_gradient_checkpointing():
        torch.testing.assert_close(model(x, z), wanted)


@EVERY
def test_a_network_none_of_whose_blocks_takes_the_condition_is_refused(name: str):
    with pytest.raises(
        ValueError, match=r"whose forward has an argument 'condition', got \['Conv2d'\]"
    ):
        NETWORKS[name](block=plain_block, condition_channels=3)


@pytest.mark.slow
@EVERY
def test_an_onnx_file_takes_the_condition(name: str, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = conditioned(name).eval()
    x, z = torch.randn(2, 2, 32, 24), torch.randn(2, 3)
    axes = {2: Dim("height", min=8, max=256), 3: Dim("width", min=8, max=256)}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (x, z),
        path,
        dynamo=True,
        dynamic_shapes=(axes, {}),
        input_names=["x", "z"],
        verbose=False,
    )
    session = runtime.InferenceSession(path)
    for size in ((32, 24), (19, 37)):
        x = torch.randn(2, 2, *size)
        (y,) = session.run(None, {"x": x.numpy(), "z": z.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x, z), atol=1e-4, rtol=1e-4)
