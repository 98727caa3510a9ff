"""Levels, of which networks of the user can be built."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from neurenix_ms import FiLM, Level, LevelFeatures, TiledModel, enable_gradient_checkpointing
from neurenix_ms.execution import accumulate_gradients
from neurenix_ms.layers import levels
from neurenix_ms.meter import peak_tensor_bytes


class Decode(nn.Module):
    """A decoder of a user."""

    def __init__(self, deep: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(deep + channels, channels, 3, padding=1)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        deep = nn.functional.interpolate(deep, scale_factor=2.0)
        return self.conv(torch.cat([skip, deep], dim=1)).relu_()


class Conditioned(nn.Module):
    """A block of a user that takes a condition."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.film = FiLM(2, channels)
        nn.init.ones_(self.film.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.film(self.conv(x), condition)


def block(in_channels: int, channels: int) -> nn.Module:
    layers = [nn.ReLU(inplace=True), nn.Conv2d(in_channels, channels, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels))


def network(encode=block) -> Level:
    torch.manual_seed(0)
    bottleneck = Level(encode(8, 16))
    return Level(block(2, 4), Level(encode(4, 8), bottleneck, Decode(16, 8)), Decode(8, 4))


def test_blocks_of_a_user_are_checkpointed_and_their_inputs_kept():
    model = network()
    twin, x = copy.deepcopy(model), torch.randn(2, 2, 64, 48)
    before = x.clone()

    def step(model: nn.Module, enabled: bool) -> None:
        with enable_gradient_checkpointing(enabled):
            loss = model(x).square().mean()
        loss.backward()

    plain = peak_tensor_bytes(lambda: step(model, False))
    assert peak_tensor_bytes(lambda: step(twin, True)) < 0.8 * plain
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x, before)


def test_the_feature_maps_of_all_levels_are_collected():
    model, features = network().eval(), LevelFeatures()
    x = torch.randn(1, 2, 16, 8)
    y = model(x, features)
    for a, b in zip(features.encoder(), model.encoded(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(features.decoder()[-1], y)
    assert torch.equal(features.decoder()[0], features.encoder()[-1])
    only_encoded = LevelFeatures(decoded=False)
    model(x, only_encoded)
    assert (len(only_encoded.encoder()), only_encoded.decoder()) == (3, [])


@pytest.mark.slow
def test_it_runs_in_tiles_and_a_condition_reaches_the_blocks_that_take_it():
    x, z = torch.randn(2, 2, 96, 64, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    plain, conditioned = network().double().eval(), network(Conditioned).double().eval()
    assert not torch.allclose(conditioned(x, None, z), conditioned(x, None, -z))
    torch.testing.assert_close(TiledModel(plain, 32)(x), plain(x))
    tiled = TiledModel(conditioned, 32)
    torch.testing.assert_close(tiled(x, args=(None, z)), conditioned(x, None, z))
    twin, loss, y = copy.deepcopy(plain), nn.functional.mse_loss, torch.zeros(2, 4, 96, 64).double()
    loss(plain(x), y).backward()
    accumulate_gradients(twin, x, y, loss, 32, whole=("inner.inner",))
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_an_inner_level_needs_a_decoder():
    with pytest.raises(ValueError, match="needs decode, got None"):
        Level(block(2, 4), Level(block(4, 8)))
    with pytest.raises(ValueError, match="encode must be"):
        Level(torch.relu)


def test_pickles_by_former_names_load():
    assert levels.Trace is LevelFeatures
    model = network().eval()
    content = pickle.dumps(model).replace(
        b"neurenix_ms.layers.levels", b"neurenix_ms.layers.blocks"
    )
    old = pickle.loads(content)
    x = torch.randn(1, 2, 16, 8)
    assert torch.equal(old(x), model(x))
    for level in old.modules():  # as earlier versions stored levels
        if isinstance(level, Level):
            for name in ("conditions", "foreign", "spatial_dims"):
                del level.__dict__[name]
    buffer = io.BytesIO(pickle.dumps(old))
    earlier = pickle.load(buffer)
    assert torch.equal(earlier(x), model(x))
    assert "Level(" in repr(earlier)
