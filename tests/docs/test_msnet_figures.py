"""Costs published for MS-Net relative to the plain implementation hold in every build."""

from functools import partial

import pytest
import torch

from benchmarks.test_msnet import networks, train_step, volume
from neurenix_ms.meter import count_flops, peak_resident_bytes, peak_tensor_bytes
from neurenix_ms.msnet import MSNet

SIZE = 32


@pytest.fixture(scope="module")
def calls():
    """Networks of three scales and a volume; with four, the weights would be most of the memory."""
    return networks(3), volume(SIZE, 3)


def test_a_checkpointed_training_step_keeps_less_than_half_and_repeats_no_convolution(calls):
    models, (x, masks) = calls
    plain = partial(train_step, models["plain"], x, masks)
    ours = partial(train_step, models["ours"], x, masks, True)
    assert peak_tensor_bytes(ours) < 0.5 * peak_tensor_bytes(plain)
    assert count_flops(ours) == count_flops(plain)


def test_a_training_step_keeps_no_more_than_the_plain_one(calls):
    models, (x, masks) = calls
    ours, plain = (partial(train_step, models[name], x, masks) for name in ("ours", "plain"))
    assert peak_tensor_bytes(ours) <= peak_tensor_bytes(plain)
    assert count_flops(ours) == count_flops(plain)


def test_a_forward_pass_keeps_little_more_than_the_plain_one(calls):
    models, (x, masks) = calls[0], volume(2 * SIZE, 3)
    with torch.no_grad():
        ours, plain = (peak_tensor_bytes(partial(models[n], x, masks)) for n in ("ours", "plain"))
    assert ours <= 1.15 * plain


@pytest.mark.slow
def test_prediction_for_256_voxels_per_axis_needs_less_than_a_gibibyte():
    x = (torch.rand(1, 1, 256, 256, 256) < 0.5).float()
    used = peak_resident_bytes(partial(MSNet().predict, x))
    assert used is None or used < 2**30
