"""Models with arguments without spatial axes, which every tile gets whole."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import (
    HighResolutionNetwork,
    NestedUNet,
    PyramidNetwork,
    SinusoidalEmbedding,
    TiledModel,
    UNet,
)
from neurenix_ms.execution import accumulate_gradients, footprint
from neurenix_ms.execution.plan.arguments import passing
from neurenix_ms.execution.plan.choice import choose_parts
from neurenix_ms.layers import MLP


def stirred(model: nn.Module) -> nn.Module:
    """The module in float64, with no parameter at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double()


class Embedded(nn.Module):
    """A conditioned network that makes its condition from a diffusion step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.embed = nn.Sequential(SinusoidalEmbedding(4), MLP(4, 3, [5]))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.network(x, self.embed(step))


def network(**options) -> nn.Module:
    return stirred(UNet(2, 1, [4, 6], condition_channels=3, **options))


@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize("dims", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_condition_reaches_every_tile_whole(dims: int, norm):
    model = network(spatial_dims=dims, norm=norm).eval()
    x = torch.randn(2, 2, *(61, 50, 22)[:dims], dtype=torch.float64)
    condition = torch.randn(2, 3, dtype=torch.float64)
    tiled = TiledModel(model, 12, spatial_dims=dims, whole=())
    torch.testing.assert_close(tiled(x, args=(condition,)), model(x, condition))
    # the plan does not depend on the values
    torch.testing.assert_close(tiled(x, args=(2 * condition,)), model(x, 2 * condition))


@pytest.mark.parametrize("kind", [NestedUNet, HighResolutionNetwork])
@pytest.mark.slow
def test_other_networks_are_conditioned_in_tiles(kind):
    options = {} if kind is NestedUNet else {"stem_reductions": 0}
    model = stirred(kind(2, 1, [4, 6], condition_channels=3, **options)).eval()
    x, z = torch.randn(1, 2, 45, 50).double(), torch.randn(1, 3).double()
    tiled = TiledModel(model, 24, whole=())
    torch.testing.assert_close(tiled(x, args=(z,)), model(x, z))


@pytest.mark.parametrize("whole", ["auto", ("level.inner",), ("level.inner.inner",)])
@pytest.mark.slow
def test_parts_run_whole_get_the_condition(whole):
    model = network(norm="batch").train()
    x = torch.randn(2, 2, 70, 45, dtype=torch.float64)
    condition = torch.randn(2, 3, dtype=torch.float64)
    plain = copy.deepcopy(model)
    tiled = TiledModel(model, 16, whole=whole)
    torch.testing.assert_close(tiled(x, args=(condition,)), plain(x, condition))
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_deep_levels_are_chosen_to_run_whole_as_without_a_condition():
    shape, like = (1, 2, 256, 256), torch.empty(0, dtype=torch.float64)
    plain = stirred(UNet(2, 1, [4, 6]))
    wanted = choose_parts(plain, shape, like, (128, 128), None)
    with passing((torch.zeros(1, 3, dtype=torch.float64),)):
        assert choose_parts(network(), shape, like, (128, 128), None) == wanted != ()


@pytest.mark.slow
def test_a_network_that_makes_its_condition_runs_in_tiles():
    model = stirred(Embedded(network(norm="group"))).eval()
    x, step = torch.randn(2, 2, 70, 45, dtype=torch.float64), torch.tensor([3.0, 400.0]).double()
    for whole in ("auto", (), ("network.level.inner",)):
        tiled = TiledModel(model, 16, whole=whole)
        torch.testing.assert_close(tiled(x, args=[step]), model(x, step))
    pyramid = stirred(PyramidNetwork(2, 1, 2, 4, condition_channels=3, norm=None))
    condition = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(TiledModel(pyramid, 16)(x, args=(condition,)), pyramid(x, condition))


@pytest.mark.parametrize("whole", [(), ("network.level.inner",)])
@pytest.mark.parametrize("tile", [16, 128])
def test_gradients_equal_those_of_the_whole_input(whole, tile: int):
    model = stirred(Embedded(network(norm=None if whole == () else "batch", act="tanh")))
    plain = copy.deepcopy(model)
    x, y = torch.randn(2, 2, 2, 64, 41, dtype=torch.float64)
    y = y[:, :1]
    step = torch.tensor([3.0, 400.0]).double().requires_grad_()
    twin = step.detach().clone().requires_grad_()
    F.mse_loss(plain(x, twin), y).backward()
    value = accumulate_gradients(model, x, y, F.mse_loss, tile, args=(step,), whole=whole)
    torch.testing.assert_close(value, F.mse_loss(plain(x, twin), y).detach())
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    torch.testing.assert_close(step.grad, twin.grad)


def test_a_network_that_computes_the_condition_outside_gets_its_gradient():
    model, embed = network(norm=None), stirred(MLP(2, 3, [4]))
    x, y = torch.randn(2, 2, 2, 64, 41, dtype=torch.float64)
    numbers = torch.randn(2, 2, dtype=torch.float64)
    F.mse_loss(model(x, embed(numbers)), y[:, :1]).backward()
    wanted = [p.grad for p in embed.parameters()]
    embed.zero_grad()
    accumulate_gradients(model, x, y[:, :1], F.mse_loss, 16, args=(embed(numbers),))
    for p, grad in zip(embed.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad)


@pytest.mark.slow
def test_the_footprint_takes_the_arguments():
    found = footprint(network(norm=None), 2, args=(torch.zeros(1, 3, dtype=torch.float64),))
    assert found == footprint(stirred(UNet(2, 1, [4, 6], norm=None)), 2)


def test_unfit_arguments_are_refused():
    model, x = network().eval(), torch.zeros(2, 2, 64, 64, dtype=torch.float64)
    tiled = TiledModel(model, 16)
    with pytest.raises(ValueError, match=r"args\[0\] must have the batch size of x, 2, .*\(3, 3\)"):
        tiled(x, args=(torch.zeros(3, 3),))
    with pytest.raises(ValueError, match=r"args must be .*arguments of the model"):
        tiled(x, args=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must have no spatial axes.*\(2, 3, 64, 64\)"):
        tiled(x, args=(torch.zeros(2, 3, 64, 64),))
    with pytest.raises(ValueError, match=r"condition must be a tensor of shape \(B, 3\).*got None"):
        tiled(x)
    with pytest.raises(ValueError, match="condition must have the dtype of the input"):
        tiled(x, args=(torch.zeros(2, 3),))


class Pooled(nn.Module):
    """A part that is called with a vector of its tile."""

    def __init__(self) -> None:
        super().__init__()
        self.part = network(norm=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, x[:, :1, 0, :3])


class Flat(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, x[:, 0, 0, :3])


def test_a_part_that_is_called_with_vectors_of_the_tile_is_refused():
    x = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"same vectors in every tile.*'part'"):
        TiledModel(Flat(), 16, whole=("part",))(x)
    with pytest.raises(ValueError, match=r"one feature map, and else with vectors .*'part'"):
        TiledModel(Pooled(), 16, whole=("part",))(x)
