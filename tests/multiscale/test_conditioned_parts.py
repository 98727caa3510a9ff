"""Heads, necks, context modules and MS-Net, conditioned on a vector."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import as_list
from torch import Tensor, nn
from torch.export import Dim, export

from neurenix_ms import (
    AtrousPyramidPooling,
    AttentionFusion,
    BidirectionalFusion,
    DeepLabHead,
    FeatureFusion,
    FiLM,
    NestedUNetDecoder,
    PyramidFusion,
    PyramidPooling,
    ScaleFusion,
    SpectralMixing,
    TiledModel,
    UNetDecoder,
    UPerHead,
    enable_gradient_checkpointing,
)
from neurenix_ms.msnet import MSNet


@dataclass
class Part:
    """A module that takes a condition of three channels, and its inputs."""

    build: Callable[..., nn.Module]
    widths: tuple[int, ...]
    is_list: bool = False
    num_films: int = 1

    def inputs(self, size: tuple[int, int] = (16, 20), batch: int = 2) -> Any:
        maps = [torch.randn(batch, c, *(n >> i for n in size)) for i, c in enumerate(self.widths)]
        return maps if self.is_list else maps[0]


class Masked(MSNet):
    """MS-Net with the condition as its second argument."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:  # type: ignore[override]
        return super().forward(x, condition=condition)


def only(*names: str, **options: Any) -> dict[str, Any]:
    """Return the options that a part takes, which has no norm, or no activation."""
    return {k: v for k, v in options.items() if k in (*names, "condition_channels")}


PARTS = {
    "FeatureFusion": Part(lambda **o: FeatureFusion([3, 5, 4], 4, **o), (3, 5, 4), True),
    "FeatureFusion sum": Part(
        lambda **o: FeatureFusion([3, 5, 4], 4, "sum", **only(**o)), (3, 5, 4), True
    ),
    "ScaleFusion": Part(lambda **o: ScaleFusion([1, 0.5], 3, 4, **o), (3, 3), True),
    "AttentionFusion": Part(
        lambda **o: AttentionFusion([3, 5], 4, attention="spatial", **only(**o)), (3, 5), True
    ),
    "PyramidFusion": Part(lambda **o: PyramidFusion([3, 5, 4], 4, **only(**o)), (3, 5, 4), True, 3),
    "SpectralMixing": Part(lambda **o: SpectralMixing(3, 4, 3, **only("act", **o)), (3,)),
    "UNetDecoder": Part(lambda **o: UNetDecoder([3, 5, 4], 2, **o), (3, 5, 4), True, 4),
    "NestedUNetDecoder": Part(lambda **o: NestedUNetDecoder([3, 5, 4], 2, **o), (3, 5, 4), True, 4),
    "UPerHead": Part(
        lambda **o: UPerHead([3, 5, 4], 2, hidden_channels=4, bins=[1, 2], **o), (3, 5, 4), True, 3
    ),
    "DeepLabHead": Part(
        lambda **o: DeepLabHead(
            [3, 5], 2, hidden_channels=4, fine_channels=3, dilations=[2, 3], **o
        ),
        (3, 5),
        True,
        3,
    ),
    "BidirectionalFusion": Part(
        lambda **o: BidirectionalFusion([3, 5, 4], 4, repeats=2, **o), (3, 5, 4), True, 3
    ),
    "PyramidPooling": Part(lambda **o: PyramidPooling(3, 4, [1, 2], **o), (3,), num_films=3),
    "AtrousPyramidPooling": Part(
        lambda **o: AtrousPyramidPooling(3, 4, [2], **o), (3,), num_films=3
    ),
    "MSNet": Part(
        lambda **o: Masked(2, 3, 2, num_layers=2, spatial_dims=2, **o), (3,), num_films=3
    ),
}
EVERY = pytest.mark.parametrize("name", PARTS)


def conditioned(name: str, **options: Any) -> nn.Module:
    """The module with no parameter at zero."""
    torch.manual_seed(0)
    model = PARTS[name].build(condition_channels=3, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(as_list(a), as_list(b), strict=True))


def close(a: Any, b: Any) -> None:
    for x, y in zip(as_list(a), as_list(b), strict=True):
        torch.testing.assert_close(x, y)


@EVERY
@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_it_starts_as_if_there_was_no_condition(name: str, norm):
    part, options = PARTS[name], {"norm": norm, "act": "elu"}
    torch.manual_seed(0)
    plain = part.build(**options)
    torch.manual_seed(0)
    model = part.build(condition_channels=3, **options)
    x, z = part.inputs(), torch.randn(2, 3)
    wanted = model(x, z)
    close(wanted, plain(x))
    films = [m for m in model.modules() if isinstance(m, FiLM)]
    assert len(films) >= part.num_films
    for film in films:
        nn.init.ones_(film.bias)
        assert not equal(model(x, z), wanted)
        nn.init.zeros_(film.bias)


@EVERY
def test_samples_have_conditions_of_their_own(name: str):
    model, x, z = conditioned(name).eval(), PARTS[name].inputs(batch=3), torch.randn(3, 3)
    every = as_list(model(x, z))
    for b in range(3):
        one = [y[b : b + 1] for y in as_list(x)]
        close(
            model(one if PARTS[name].is_list else one[0], z[b : b + 1]),
            [y[b : b + 1] for y in every],
        )


@EVERY
def test_gradients_are_those_of_a_checkpointed_step(name: str):
    model = conditioned(name)
    twin, x = copy.deepcopy(model), PARTS[name].inputs()
    found = []
    for network, enabled in ((model, False), (twin, True)):
        z = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()
        with enable_gradient_checkpointing(enabled):
            loss = sum(y.square().mean() for y in as_list(network(x, z)))
        loss.backward()
        found.append([z.grad, *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].abs().min() > 0


@EVERY
def test_unfit_conditions_are_refused(name: str):
    model, x = conditioned(name), PARTS[name].inputs()
    with pytest.raises(ValueError, match=r"shape \(B, 3\), one vector per sample, got None"):
        model(x)
    with pytest.raises(ValueError, match=r"batch of 2, got shape \(1, 3\)"):
        model(x, torch.zeros(1, 3))
    with pytest.raises(
        ValueError, match=r"condition_channels=None, got a tensor of shape \(2, 3\)"
    ):
        PARTS[name].build()(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="condition_channels must be at least 1, got 0"):
        PARTS[name].build(condition_channels=0)


@EVERY
@pytest.mark.slow
def test_traced_exported_and_compiled(name: str):
    part, model = PARTS[name], conditioned(name, norm="group").eval()
    x, z = part.inputs((64, 48)), torch.randn(2, 3)
    axes = [Dim(f"axis{k}", min=8, max=256) for k in range(2)]
    finest = 2 ** (len(part.widths) - 1)
    maps = [
        {2 + k: finest // 2**i * a for k, a in enumerate(axes)} for i in range(len(part.widths))
    ]
    shapes = (maps if part.is_list else maps[0], None)
    ways = [
        export(model, (x, z), dynamic_shapes=shapes).module(),
        torch.fx.symbolic_trace(model),
        torch.compile(model, fullgraph=True, backend="eager"),
    ]
    for size in ((64, 48), (40, 36)):
        x, z = part.inputs(size), torch.randn(2, 3)
        for way in ways:
            close(way(x, z), model(x, z))


# what sees the whole input, and is named where no encoder gives a choice
GLOBAL = {
    "SpectralMixing": ("part",),
    "PyramidPooling": ("part",),
    "DeepLabHead": ("part.context",),
}


class Fed(nn.Module):
    """A part behind convolutions of an image at several sizes; the finest result."""

    def __init__(self, name: str) -> None:
        super().__init__()
        options = {"image_pooling": False} if name == "AtrousPyramidPooling" else {}
        self.part = conditioned(name, **options)
        self.is_list = PARTS[name].is_list
        self.convs = nn.ModuleList(nn.Conv2d(2, c, 3, padding=1) for c in PARTS[name].widths)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        maps = [conv(F.avg_pool2d(x, 2**i)) for i, conv in enumerate(self.convs)]
        y = self.part(maps if self.is_list else maps[0], condition)
        return y if isinstance(y, Tensor) else y[0]


# whose plans take longest
PLANNED_LONG = ("BidirectionalFusion", "UPerHead", "NestedUNetDecoder")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in PLANNED_LONG else ())
        for name in PARTS
        if name != "MSNet"
    ],
)
def test_every_part_is_conditioned_in_tiles(name: str):
    model = Fed(name).double().eval()
    x, z = torch.randn(2, 2, 64, 48).double(), torch.randn(2, 3).double()
    tiled = TiledModel(model, 16, whole=GLOBAL.get(name, "auto"))
    torch.testing.assert_close(tiled(x, args=(z,)), model(x, z))
    assert not torch.allclose(tiled(x, args=(-z,)), model(x, z))


def test_contexts_and_msnet_are_conditioned_in_tiles():
    x, z = torch.randn(1, 3, 48, 40).double(), torch.randn(1, 3).double()
    pool = conditioned("AtrousPyramidPooling", norm=None, image_pooling=False).double().eval()
    torch.testing.assert_close(TiledModel(pool, 16)(x, args=(z,)), pool(x, z))
    model = MSNet(2, 1, 2, num_layers=2, spatial_dims=2, condition_channels=3).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    pores = (x[:, :1] > 0).double()
    whole = model.predict(pores, condition=z)
    torch.testing.assert_close(model.predict(pores, 16, condition=z), whole)
    assert not torch.allclose(model.predict(pores, condition=-z), whole)
