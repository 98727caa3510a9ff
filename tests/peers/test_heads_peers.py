"""Decoders over feature maps, equal to those of segmentation_models_pytorch."""

import pytest
import torch

from benchmarks.peers import smp_deeplab, smp_upernet
from neurenix_ms import DeepLabHead, UPerHead

pytest.importorskip("segmentation_models_pytorch")


def scrambled(head):
    with torch.no_grad():
        for value in [*head.parameters(), *head.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return head.eval()


@pytest.mark.parametrize("size", [(32, 48), (37, 53)])
def test_upper_head_is_that_of_upernet(size):
    ours = scrambled(UPerHead([8, 12, 16, 6], 3, hidden_channels=10))
    theirs = smp_upernet(ours)
    features = [
        torch.randn(2, c, *(max(1, n >> k) for n in size)) for k, c in enumerate(ours.in_channels)
    ]
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-4)


def test_deeplab_head_is_that_of_deeplabv3plus():
    ours = scrambled(
        DeepLabHead([8, 16], 3, hidden_channels=12, dilations=[2, 4, 6], align_corners=True)
    )
    theirs = smp_deeplab(ours)
    features = [torch.randn(2, 8, 32, 48), torch.randn(2, 16, 8, 12)]
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-4)
