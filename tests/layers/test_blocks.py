"""Blocks of convolutions: one spec for all layers, kernels with unequal edges, old names."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn

from neurenix_ms.layers.blocks import ConvBlock, ConvNormAct, ConvSpec


def test_a_layer_of_a_spec_is_that_of_the_same_arguments():
    options = {"kernel_size": 5, "norm": "group", "act": "gelu", "padding_mode": "circular"}
    torch.manual_seed(0)
    ours = ConvSpec(spatial_dims=1, **options).layer(3, 8)
    torch.manual_seed(0)
    theirs = ConvNormAct(3, 8, spatial_dims=1, **options)
    assert str(ours) == str(theirs)
    x = torch.randn(2, 3, 11)
    assert torch.equal(ours(x), theirs(x))


def test_a_spec_cannot_be_changed_after_it_was_passed_on():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConvSpec().norm = "group"


@pytest.mark.parametrize("block", ["single", "double", "residual"])
def test_kernels_with_unequal_edges_keep_the_size(block: str):
    x = torch.randn(1, 2, 7, 6, 5)
    y = ConvBlock(2, 3, block=block, spec=ConvSpec(spatial_dims=3, kernel_size=(1, 3, 5)))(x)
    assert y.shape == (1, 3, 7, 6, 5)


def test_groups_are_those_of_the_convolution():
    layer = ConvNormAct(6, 6, groups=6, norm=None, act=None)
    twin = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    twin.load_state_dict(layer.conv.state_dict())
    x = torch.randn(1, 6, 5, 4)
    assert torch.equal(layer(x), twin(x))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (4, "kernel_size must be odd to keep the size, got 4"),
        ((3, 2), "kernel_size must be odd to keep the size, got 2"),
        ((3, 3, 3), r"kernel_size must be one number or 2, got \[3, 3, 3\]"),
    ],
)
def test_kernels_that_do_not_keep_the_size_raise(edges, message: str):
    with pytest.raises(ValueError, match=message):
        ConvNormAct(1, 1, kernel_size=edges)


@pytest.mark.parametrize("name", ["Double", "Level", "Trace", "Up"])
def test_pickles_find_levels_where_they_were(name: str):
    blocks = importlib.import_module("neurenix_ms.layers.blocks")
    assert getattr(blocks, name) is getattr(
        importlib.import_module("neurenix_ms.layers.levels"), name
    )
