"""MS-Net compared with a plain implementation of the published network."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain, plain_msnet
from benchmarks.paired import assert_equal, measure_step, only_when_timing
from neurenix_ms import enable_gradient_checkpointing
from neurenix_ms.msnet import MSNet, coarsen, scale_masks

CHECKPOINTING = "ours, checkpointing"


def networks(num_scales: int = 4) -> dict[str, nn.Module]:
    """Return our network and the plain one with the same weights."""
    ours = MSNet(num_scales)
    return {"ours": ours, "plain": plain.with_weights_of(ours, plain_msnet.MSNet(num_scales))}


def volume(size: int, num_scales: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Return a porous medium at all scales, and its masks."""
    x = (torch.rand(1, 1, size, size, size) < 0.5).float()
    return coarsen(x, num_scales), scale_masks(x, num_scales)


def train_step(
    model: nn.Module, x: list[Tensor], masks: list[Tensor], checkpointing: bool = False
) -> None:
    """Run forward and backward with a loss on every scale, and drop the gradients."""
    with enable_gradient_checkpointing(checkpointing):
        outputs = model(x, masks)
    sum(y.square().mean() for y in outputs).backward()
    model.zero_grad()


@pytest.mark.headline
@pytest.mark.benchmark(group="msnet/forward")
@pytest.mark.parametrize("variant", ["plain", "ours"])
@pytest.mark.parametrize("size", [64, 128])
def test_msnet_forward(size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    models, (x, masks) = networks(), volume(size)
    with torch.no_grad():
        calls = {name: partial(model, x, masks) for name, model in models.items()}
        assert_equal(calls["ours"](), calls["plain"]())
        measure_step(measure, calls, variant, x[-1], models[variant], resident=True)


@pytest.mark.headline
@pytest.mark.benchmark(group="msnet/train-step")
@pytest.mark.parametrize("variant", ["plain", "ours", CHECKPOINTING])
@pytest.mark.parametrize("size", [64, 128])
def test_msnet_train_step(size, variant, measure, request):
    if size == 128:
        only_when_timing(request)
    models, (x, masks) = networks(), volume(size)
    network = models["plain" if variant == "plain" else "ours"]
    steps = {
        "plain": partial(train_step, models["plain"], x, masks),
        variant: partial(train_step, network, x, masks, variant == CHECKPOINTING),
    }
    measure_step(measure, steps, variant, x[-1], network, rounds=3, resident=True)
