"""Layers that condition a feature map on a vector, and the embedding of a number."""

import math

import pytest
import torch
from torch import nn

from neurenix_ms import FiLM, SinusoidalEmbedding
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.conditioning import condition_name


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_channel_is_scaled_and_shifted(dims: int):
    film = FiLM(2, 3).double()
    for parameter in film.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 3, *(5, 1, 2)[:dims], dtype=torch.float64)
    z = torch.randn(4, 2, dtype=torch.float64)
    for b in range(4):
        for c in range(3):
            gamma = film.weight[c] @ z[b] + film.bias[c]
            beta = film.weight[3 + c] @ z[b] + film.bias[3 + c]
            torch.testing.assert_close(film(x, z)[b, c], (1 + gamma) * x[b, c] + beta)
    inputs = x.requires_grad_(), z.requires_grad_()
    assert torch.autograd.gradcheck(film, inputs)


def test_it_comes_between_norm_and_activation():
    layer = ConvNormAct(2, 3, condition_channels=2).eval()
    nn.init.normal_(layer.film.weight)
    x, z = torch.randn(2, 2, 7, 5), torch.randn(2, 2)
    torch.testing.assert_close(layer(x, z), layer.film(layer.norm(layer.conv(x)), z).relu())


def test_a_new_layer_returns_its_input_and_draws_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    film = FiLM(2, 3)
    assert torch.equal(torch.rand(1), wanted)
    x = torch.randn(2, 3, 5)
    assert torch.equal(film(x, torch.randn(2, 2)), x)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (None, r"shape \(B, 2\), one vector per sample, got None"),
        ([1.0, 2.0], r"got \[1.0, 2.0\]"),
        (torch.zeros(2), r"of the batch of 4, got shape \(2,\)"),
        (torch.zeros(4, 3), r"got shape \(4, 3\)"),
        (torch.zeros(3, 2), r"got shape \(3, 2\)"),
        (torch.zeros(4, 2).double(), "dtype of the input, torch.float32, got torch.float64"),
        (torch.zeros(4, 2).int(), "got torch.int32"),
    ],
)
def test_unfit_conditions_are_refused(condition, words: str):
    with pytest.raises(ValueError, match=words):
        FiLM(2, 3)(torch.zeros(4, 3, 5), condition)


def test_unfit_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="condition_channels must be at least 1, got 0"):
        FiLM(0, 3)
    with pytest.raises(ValueError, match=r"channels must be even, .* got 5"):
        SinusoidalEmbedding(5)
    with pytest.raises(ValueError, match="channels must be at least 2, got 0"):
        SinusoidalEmbedding(0)
    with pytest.raises(ValueError, match="max_period must be above 0 and finite, got -1"):
        SinusoidalEmbedding(4, -1.0)


@pytest.mark.parametrize("max_period", [10_000.0, 50.0])
def test_the_embedding_is_that_of_the_paper(max_period: float):
    channels, steps = 6, [0.0, 1.0, 0.25, 999.0]
    found = SinusoidalEmbedding(channels, max_period)(torch.tensor(steps, dtype=torch.float64))
    for row, step in zip(found.tolist(), steps, strict=True):
        angles = [step / max_period ** (2 * i / channels) for i in range(channels // 2)]
        wanted = [*map(math.sin, angles), *map(math.cos, angles)]
        assert row == pytest.approx(wanted, abs=1e-12)


def test_large_steps_in_half_precision_keep_their_phase():
    steps = torch.tensor([[992.0], [1000.0]])
    low = SinusoidalEmbedding(8)(steps.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), SinusoidalEmbedding(8)(steps), atol=4e-3, rtol=0)


def test_integers_give_the_default_dtype_and_columns_are_taken():
    embed = SinusoidalEmbedding(4)
    steps = torch.tensor([3, 7])
    assert embed(steps).dtype == torch.float32
    assert torch.equal(embed(steps), embed(steps.float()[:, None]))
    assert embed.state_dict() == {}


@pytest.mark.parametrize("x", [torch.zeros(2, 2), torch.zeros(()), torch.zeros(2, 1, 1)])
def test_other_shapes_are_refused(x):
    with pytest.raises(ValueError, match=r"shape \(B,\) or \(B, 1\), got shape"):
        SinusoidalEmbedding(4)(x)
    with pytest.raises(ValueError, match="complex64"):
        SinusoidalEmbedding(4)(torch.zeros(2, dtype=torch.complex64))


def test_the_embedding_is_traced_exported_and_compiled():
    embed, x = nn.Sequential(SinusoidalEmbedding(4)), torch.tensor([1.0, 2.0, 3.0])
    traced = torch.fx.symbolic_trace(embed)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(embed, (x,), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(embed, fullgraph=True, backend="eager")
    for y in (x, torch.rand(5)):
        for way in (traced, program, compiled):
            torch.testing.assert_close(way(y), embed(y))


class Named(nn.Module):
    def forward(self, x, mask=None, *, condition=None):
        return x


class Second(nn.Module):
    def forward(self, x, emb):
        return x


class Optional(nn.Module):
    def forward(self, x, mask=None):
        return x


def test_the_argument_for_the_condition_is_found():
    names = [condition_name(m) for m in (Named(), Second(), Optional(), nn.Conv1d(1, 1, 1))]
    assert names == ["condition", "emb", None, None]
    assert condition_name(nn.MultiheadAttention(2, 1)) == "key"
