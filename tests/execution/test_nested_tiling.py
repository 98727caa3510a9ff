"""Networks of nested levels that take divisible sizes only run in tiles, whichever part runs whole."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import BATCH_NORMS, CONVOLUTIONS, POOLS, TRANSPOSED_CONVOLUTIONS
from neurenix_ms.execution import TiledModel, accumulate_gradients, footprint
from neurenix_ms.execution.run.setting import settle

EXACT = 1e-10
SIZES = {1: (96,), 2: (48, 32), 3: (16, 24, 16)}


class Recursive(nn.Module):
    """A U-Net written as a level inside a level; sizes must be divisible at every one of them."""

    def __init__(self, depth: int, in_channels: int, channels: int, dims: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.encode = nn.Sequential(
            conv(in_channels, channels, 3, padding=1), BATCH_NORMS[dims](channels)
        )
        self.pool = POOLS["max"][dims](2)
        self.inner = Recursive(depth - 1, channels, 2 * channels, dims) if depth else None
        self.up = TRANSPOSED_CONVOLUTIONS[dims](2 * channels, channels, 2, stride=2)
        self.decode = conv(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encode(x))
        if self.inner is None:
            return x
        return self.decode(torch.cat([x, self.up(self.inner(self.pool(x)))], 1))


class Halves(nn.Module):
    """Halves twice and doubles twice, inside one part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.part = nn.Sequential(
            nn.Conv2d(2, 4, 2, stride=2),
            nn.Conv2d(4, 4, 2, stride=2),
            nn.ConvTranspose2d(4, 2, 4, stride=4),
        )
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cat([x, self.part(x)], 1))


@pytest.mark.parametrize("dims", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("whole", ["auto", (), ("inner",), ("inner.inner",)])
def test_nested_levels(dims, training, whole):
    model = Recursive(2, 1, 2, dims).double().train(training)
    x = torch.randn(2, 1, *SIZES[dims], dtype=torch.float64)
    wanted = copy.deepcopy(model)(x)
    got = TiledModel(model, 8, spatial_dims=dims, whole=whole)(x)
    assert (got - wanted).abs().max() < EXACT * wanted.std()


def test_a_part_is_chosen():
    model = Recursive(3, 1, 4, 2).eval()
    setting = settle(model, (1, 1, 96, 64), torch.empty(0), 32, "auto", 10**7)
    assert setting.whole == ("inner",)
    assert setting.plan.stride == (2, 2)
    assert setting.plan.period == (8, 8)


def test_a_part_that_halves_inside():
    model = Halves().double()
    x = torch.randn(1, 1, 48, 40, dtype=torch.float64)
    wanted = model(x)
    for whole in ("auto", (), ("part",)):
        got = TiledModel(model, 9, whole=whole)(x)
        assert (got - wanted).abs().max() < EXACT * wanted.std()


@pytest.mark.parametrize("whole", ["auto", (), ("inner",)])
def test_gradients_of_nested_levels(whole):
    plain = Recursive(2, 1, 2, 2).double().train()
    tiled = copy.deepcopy(plain)
    x, y = torch.randn(2, 2, 1, 48, 32, dtype=torch.float64)
    target = y.expand(-1, 2, -1, -1)
    F.mse_loss(plain(x), target).backward()
    accumulate_gradients(tiled, x, target, F.mse_loss, 8, whole=whole)
    grads = [p.grad for p in plain.parameters() if p.grad is not None]
    most = max(grad.abs().max() for grad in grads)
    pairs = zip(grads, (p.grad for p in tiled.parameters() if p.grad is not None), strict=True)
    for a, b in pairs:
        assert (a - b).abs().max() < 1e-9 * most


@pytest.mark.parametrize("whole", ["auto", (), ("inner",)])
def test_a_size_that_the_model_does_not_take_is_refused_by_the_name_of_a_layer(whole):
    model = Recursive(2, 1, 2, 2).eval()
    with pytest.raises(
        ValueError, match=r"in (Recursive|'inner' \(Recursive\)) .*take a size that"
    ):
        TiledModel(model, 8, whole=whole)(torch.zeros(1, 1, 47, 30))


class Along(nn.Module):
    """Multiplies by something of its own, or of its input, that lacks the batch axis."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return x * self.make(x)


BATCHLESS = {
    "positions": lambda x: torch.linspace(0, 1, x.shape[-1]),
    "grid": lambda x: torch.linspace(0, 1, x.shape[-1] * x.shape[-2]).reshape(x.shape[-2:]),
    "a mean": lambda x: x.mean((0, 1, 2)),
    "a maximum": lambda x: x.flatten().max(),
    "a row": lambda x: x[0, 0, 0],
}
HARMLESS = {
    "ones": lambda x: torch.ones(x.shape[-1]),
    "a number": lambda x: torch.tensor(2.0),
    "alternating": lambda x: torch.ones(x.shape[-2:]) * 3,
}


@pytest.mark.parametrize("name", BATCHLESS)
def test_tensors_without_batch_axes_are_refused_by_the_name_of_a_layer(name):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Along(BATCHLESS[name]))
    with pytest.raises(ValueError, match=r"'1' \(Along\) .*replace it"):
        footprint(model, 1)


@pytest.mark.parametrize("name", HARMLESS)
def test_tensors_without_batch_axes_do_no_harm(name):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Along(HARMLESS[name]))
    assert footprint(model, 1).halo == ((1, 1), (1, 1))


class Decides(nn.Module):
    """Takes a path by the values of the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class Fails(nn.Module):
    """Takes sizes that are divisible by 7."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.reshape(*x.shape[:2], x.shape[2] // 7, 7, x.shape[3]).sum(3).repeat(1, 1, 7, 1)


@pytest.mark.parametrize("layer", [Decides(), Fails()], ids=["decides", "fails"])
@pytest.mark.parametrize("whole", ["auto", ()])
def test_every_refusal_names_a_layer(layer, whole):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer)
    with pytest.raises(ValueError, match=r"'1' \(\w+\).*replace it"):
        TiledModel(model, 8, whole=whole)(torch.randn(1, 1, 32, 32))
