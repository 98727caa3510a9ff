"""U-Nets conditioned on a vector against the plain way, and against one without a condition."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain_conditioning
from benchmarks.paired import measure_forward, measure_step, only_when_timing, train_step
from neurenix_ms import UNet

FEATURES = (16, 32, 64)
LENGTH = 32  # of the condition
VARIANTS = ["plain", "ours", "ours, checkpointing", "unconditioned"]


class Fixed(nn.Module):
    """A network with one condition for all calls."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("condition", torch.linspace(-1, 1, LENGTH).expand(batch, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self.condition)


def ways_of(dims: int, batch: int) -> dict[str, nn.Module]:
    ours = UNet(
        3, 1, FEATURES, spatial_dims=dims, condition_channels=LENGTH, remember=False
    )  # fmt: skip
    for name, values in ours.named_parameters():
        if "film" in name:
            nn.init.normal_(values, std=0.1)
    plain = plain_conditioning.UNet(3, 1, FEATURES, LENGTH, dims)
    return {
        "plain": Fixed(plain_conditioning.with_values_of(ours, plain), batch),
        "ours": Fixed(ours, batch),
        "unconditioned": UNet(3, 1, FEATURES, spatial_dims=dims, remember=False),
    }


@pytest.mark.benchmark(group="unet/conditioned")
@pytest.mark.parametrize("variant", ["plain", "ours", "unconditioned"])
@pytest.mark.parametrize(("dims", "size"), [(1, 1024), (2, 64), (2, 256), (3, 32)])
def test_conditioned_forward(dims, size, variant, measure, request):
    if size == 256:
        only_when_timing(request)
    ways = {name: way.eval() for name, way in ways_of(dims, 2).items()}
    x = torch.randn(2, 3, *(size,) * dims)
    measure_forward(measure, ways, variant, x, same=variant != "unconditioned")


@pytest.mark.benchmark(group="unet/conditioned-train-step")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dims", "size"), [(1, 1024), (2, 64), (2, 256), (3, 32)])
def test_conditioned_train_step(dims, size, variant, measure, request):
    if size == 256:
        only_when_timing(request)
    ways = ways_of(dims, 2)
    x = torch.randn(2, 3, *(size,) * dims)
    steps: dict[str, Any] = {name: partial(train_step, way, x) for name, way in ways.items()}
    steps["ours, checkpointing"] = partial(train_step, ways["ours"], x, True)
    measure_step(measure, steps, variant, x, model=ways[variant.partition(",")[0]])
