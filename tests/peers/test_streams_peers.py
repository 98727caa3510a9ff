"""The streams of a high-resolution network are those of timm, which takes some sizes only."""

import pytest
import torch
from torch import nn

from benchmarks.peers import timm_streams
from neurenix_ms import HighResolutionNetwork

pytest.importorskip("timm")


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model.double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("in_channels", "features", "modules"),
    [(4, [4, 6], 1), (3, [4, 6, 8], [1, 2, 1]), (4, [4, 8, 12, 16], [1, 1, 2, 1])],
)
def test_values_and_gradients_are_those_of_timm(in_channels, features, modules, training):
    ours = HighResolutionNetwork(
        in_channels, features=features, num_modules=modules, stem_reductions=0
    )
    ours = scrambled(ours).train(training)
    theirs = timm_streams(ours).double()
    x = torch.randn(2, in_channels, 32, 48, dtype=torch.float64, requires_grad=True)
    found, wanted = (model(x) for model in (ours, theirs))
    torch.testing.assert_close(found, wanted)
    slopes = [
        torch.autograd.grad(sum(y.square().mean() for y in streams), x)
        for streams in (found, wanted)
    ]
    torch.testing.assert_close(*slopes)
    odd = torch.randn(1, in_channels, 29, 43, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        theirs(odd)
    assert ours(odd)[0].shape[2:] == (29, 43)
