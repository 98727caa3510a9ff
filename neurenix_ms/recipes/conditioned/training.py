"""Waves that travel at a known speed, and networks that advance them by a step of time."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neurenix_ms.multiscale import UNet

Way = Literal["condition", "channel", "none"]
WAYS: tuple[Way, ...] = ("condition", "channel", "none")
SEEN = (-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
UNSEEN = (-0.9, -0.7, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7, 0.9)
NUM_POINTS = 64
FARTHEST = 6.0  # points that a wave of speed 1 travels in a step
NUM_WAVES = 12
FEATURES = (16, 32)
BATCH = 32
NUM_TEST = 200
TEST_SEED = 10**6


def waves(speed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random fields on a ring, and the same fields a step of time later, which are exact.

    Args:
        speed: Speed of every field, `(N, 1)`.
        generator: Source of amplitudes and phases.
    """
    k = torch.arange(1, NUM_WAVES + 1.0)
    amplitude = torch.randn(2, len(speed), NUM_WAVES, generator=generator) / k.sqrt()
    place = torch.arange(NUM_POINTS) / NUM_POINTS

    def at(x: Tensor) -> Tensor:
        angle = 2 * math.pi * k[:, None] * x[:, None]
        waves = amplitude[0][..., None] * angle.cos() + amplitude[1][..., None] * angle.sin()
        return waves.sum(1, keepdim=True)

    return at(place.expand(len(speed), -1)), at(place - speed * (FARTHEST / NUM_POINTS))


def build(way: Way) -> UNet:
    """Return the network; the ways differ in its first convolution or its blocks alone."""
    return UNet(
        2 if way == "channel" else 1,
        1,
        FEATURES,
        spatial_dims=1,
        norm="group",
        act="gelu",
        padding_mode="circular",
        condition_channels=1 if way == "condition" else None,
        remember=False,
    )


def predict(model: UNet, way: Way, x: Tensor, speed: Tensor) -> Tensor:
    """Return the fields a step later, of a network that gets the speed this way."""
    if way == "condition":
        y = model(x, speed)
    elif way == "channel":
        y = model(torch.cat([x, speed[..., None].expand_as(x)], dim=1))
    else:
        y = model(x)
    assert isinstance(y, Tensor)
    return y


def trained(way: Way, iterations: int, seed: int) -> UNet:
    """Return a trained network; all ways see the same batches of a seed.

    Args:
        way: How the speed enters.
        iterations: Steps of Adam, whose rate falls to zero along a cosine.
        seed: Seed of weights and batches.
    """
    torch.manual_seed(seed)
    model = build(way)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        speed = torch.tensor(SEEN)[torch.randint(len(SEEN), (BATCH, 1), generator=generator)]
        x, y = waves(speed, generator)
        optimizer.zero_grad()
        F.mse_loss(predict(model, way, x, speed), y).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def error(model: UNet, way: Way, speed: float) -> float:
    """Return the root mean square error at a speed, relative to the fields, on unseen fields."""
    speeds = torch.full((NUM_TEST, 1), speed)
    x, y = waves(speeds, torch.Generator().manual_seed(TEST_SEED))
    apart = predict(model, way, x, speeds) - y
    return float((apart.square().mean() / y.square().mean()).sqrt())
