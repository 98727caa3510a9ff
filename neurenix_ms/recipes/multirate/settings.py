"""Data, networks and budgets of both systems, and of a field of the user's own."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from neurenix_ms.datasets import SampleCache
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.naming import Act
from neurenix_ms.recipes.chaos import chaotic_waves
from neurenix_ms.recipes.own import OwnTrajectories
from neurenix_ms.timestepping import (
    FourierLatents,
    IntegratorStepper,
    MultirateStepper,
    TimeStepper,
)

Parts = dict[str, Tensor]
DT_LORENZ = 0.05
SHIFTS = 8  # copies of the training fields, shifted around the ring, which follow the same equation
HOP = 96  # steps between the starts of two test windows
EARLY = 48  # steps after which the table has an error
WINDOW = 601  # rows of a test window of waves, and at most of one of the user's own


@dataclass(frozen=True)
class Settings:
    """Data and training of a system.

    Args:
        title: Name in tables.
        data: Function from a folder to the standardized trajectories "train", "validation" and "test",
            `(N, T, 1, S)`.
        size: Points on the ring.
        published: Steps at which the publication compares errors.
        change_scale: Standard deviation of the change in a step.
        iterations: Steps of Adam, equal for all variants.
    """

    title: str
    data: Callable[[Path], Parts]
    size: int
    published: int
    change_scale: float
    iterations: int


@dataclass(frozen=True)
class Variant:
    """A model of the comparison.

    Args:
        title: Name in tables.
        width: Channels of the convolutions.
        periods: Periods of the levels, finest first; None for a network without levels.
        stride: Steps that the network makes in one call.
    """

    title: str
    width: int
    periods: tuple[int, ...] | None
    stride: int = 1


VARIANTS = {
    "single": Variant("single-rate network", 48, None),
    "multirate": Variant("**multirate levels**", 32, (1, 2, 4)),
    "stride": Variant("network of stride 4", 48, None, 4),
}
MODES = (9, 6, 3)
HIDDEN = 32
DEPTH = 4
GATE_BIAS = -6.0


class ResidualNetwork(nn.Module):
    """Circular convolutions of one resolution with residual connections; a new one returns zeros.

    Args:
        in_channels: Channels of the input.
        width: Channels of the layers.
        scale: Unit of the result.

    Shape:
        `(B, in_channels, S)` -> `(B, 1, S)`
    """

    def __init__(self, in_channels: int, width: int, scale: float = 1.0) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, act: Act | None = "gelu") -> ConvNormAct:
            return ConvNormAct(
                inputs,
                outputs,
                spatial_dims=1,
                kernel_size=5,
                norm=None,
                act=act,
                padding_mode="circular",
            )

        self.scale = scale
        self.first = layer(in_channels, width)
        self.blocks = nn.ModuleList(layer(width, width) for _ in range(DEPTH))
        self.last = layer(width, 1, None)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        result: Tensor = self.scale * self.last(y)
        return result


def build(variant: Variant, settings: Settings) -> TimeStepper | MultirateStepper:
    """Return a new model; all variants have about as many parameters."""
    if variant.periods is None:
        scale = settings.change_scale * variant.stride
        return TimeStepper(ResidualNetwork(1, variant.width, scale), variant.stride)
    return MultirateStepper(
        ResidualNetwork(1 + len(MODES), variant.width),
        FourierLatents(1, [settings.size], MODES),
        variant.periods,
        hidden_size=HIDDEN,
        gate_bias=GATE_BIAS,
        change_scale=settings.change_scale,
    )


def waves(folder: Path) -> Parts:
    """Solve Kuramoto-Sivashinsky waves on a ring of circumference 22, once they are chaotic."""

    seen = torch.stack([chaotic_waves(seed, folder) for seed in (1, 2, 3, 4)])
    unseen = {
        "validation": chaotic_waves(11, folder)[None],
        "test": chaotic_waves(21, folder)[None],
    }
    return standardized(seen, unseen, window=WINDOW)


def lorenz(folder: Path) -> Parts:
    """Solve the Lorenz-96 system with 40 sites and forcing 8, once it is chaotic."""
    sizes = {"train": (16, 1500), "validation": (4, 1500), "test": (16, 1500)}
    parameters = {"dt": DT_LORENZ, "sites": 40, "parts": {k: list(v) for k, v in sizes.items()}}

    def make(index: int) -> Parts:
        num_samples, num_steps = list(sizes.values())[index]
        generator = torch.Generator().manual_seed(index + 1)
        x = 8 + torch.randn(num_samples, 40, generator=generator, dtype=torch.float64)
        stepper = IntegratorStepper(lorenz96, DT_LORENZ / 5, 1)
        rows = []
        for step in range(5 * (num_steps + 400)):
            if step >= 2000 and step % 5 == 0:
                rows.append(x)
            x = stepper(x)
        return {"states": torch.stack(rows, dim=1)}

    cache = SampleCache(folder, "trajectories_lorenz96", parameters, make)
    seen, *others = (cache[i]["states"].float() for i in range(len(sizes)))
    return standardized(seen, dict(zip(("validation", "test"), others, strict=True)), window=301)


def lorenz96(x: Tensor) -> Tensor:
    """Return the time derivative of states `(B, sites)`."""
    return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8


def standardized(seen: Tensor, unseen: Parts, window: int) -> Parts:
    """Scale by the mean and deviation of the training data, and cut the others into windows."""
    mean, std = seen.mean(), seen.std()
    shift = seen.shape[-1] // SHIFTS
    parts = {"train": torch.cat([seen.roll(shift * i, -1) for i in range(SHIFTS)])}
    for name, rows in unseen.items():
        parts[name] = rows.unfold(1, window, HOP).transpose(2, 3).flatten(0, 1)
    return {name: ((rows - mean) / std).unsqueeze(2) for name, rows in parts.items()}


def own_field(array: DiskArray, options: argparse.Namespace) -> tuple[str, Settings]:
    """Return a name and the settings of a field on a ring, at all times, from a file.

    Args:
        array: Values `(N, T, S)` at equal time steps and distances, or `(T, S)` of a single trajectory.
        options: The command line, which has no effect.

    Raises:
        ValueError: If the file is not usable, or the field has too few points or does not change.
    """
    own = OwnTrajectories(array, EARLY + 1, "points")
    seen = own.parts.pop("train")
    size, least = seen.shape[-1], 2 * MODES[0] - 1
    if size < least:
        raise ValueError(
            f"{array.path} must have at least {least} points on the ring, got shape {array.shape}"
        )
    change = float(seen.diff(dim=1).square().mean().sqrt() / seen.std())
    if change == 0:
        raise ValueError(f"{array.path} must have values that change in time, got equal ones")
    window = min(WINDOW, own.shortest)
    parts = {k: x.float() for k, x in standardized(seen, own.parts, window).items()}
    settings = Settings(own.name, lambda _: parts, size, window - 1, change, 2000)
    return f"{own.name}_{own.digest[:8]}", settings


SYSTEMS = {
    "kuramoto_sivashinsky": Settings(
        "Kuramoto-Sivashinsky",
        waves,
        32,
        400,
        0.1,
        2000,
    ),
    "lorenz96": Settings(
        "Lorenz-96",
        lorenz,
        40,
        100,
        0.3,
        2000,
    ),
}
