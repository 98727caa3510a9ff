"""Nested U-Nets, equal to those of MONAI and segmentation_models_pytorch."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.peers import SLOPE, monai_nested, smp_nested
from neurenix_ms import NestedUNet, NestedUNetDecoder


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model.double()


def outputs_and_slopes(model: nn.Module, *inputs: torch.Tensor, as_list: bool = False):
    y = model(list(inputs)) if as_list else model(*inputs)
    maps = y if isinstance(y, list) else [y]
    return [*maps, *torch.autograd.grad(sum(one.square().mean() for one in maps), inputs)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_values_and_gradients_are_those_of_monai(dims, deep_supervision, training):
    pytest.importorskip("monai")
    ours = NestedUNet(
        1,
        2,
        [3, 3, 6, 12],
        spatial_dims=dims,
        up="transposed",
        norm="instance",
        act=partial(nn.LeakyReLU, SLOPE),
        conv_bias=True,
        deep_supervision=deep_supervision,
    )
    ours = scrambled(ours).train(training)
    theirs = monai_nested(ours).double()
    x = torch.randn(
        2,
        1,
        *((32, 48) if dims < 3 else (32, 16, 16))[:dims],
        dtype=torch.float64,
        requires_grad=True,
    )
    found, wanted = (outputs_and_slopes(model, x) for model in (ours, theirs))
    assert len(found) == (5 if deep_supervision and training else 2)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("widths", [[4, 6], [8, 12, 16, 6]])
def test_values_and_gradients_are_those_of_smp(widths, training):
    pytest.importorskip("segmentation_models_pytorch")
    ours = scrambled(NestedUNetDecoder(widths, 3, up="nearest")).train(training)
    theirs = smp_nested(ours).double()
    features = [
        torch.randn(2, c, 32 >> k, 48 >> k, dtype=torch.float64, requires_grad=True)
        for k, c in enumerate(widths)
    ]
    found, wanted = (outputs_and_slopes(m, *features, as_list=True) for m in (ours, theirs))
    torch.testing.assert_close(found, wanted)
    odd = [torch.randn(1, c, 37 >> k, 53 >> k).double() for k, c in enumerate(widths)]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(odd)
    assert ours(odd).shape == (1, 3, 37, 53)
