"""Latents of a state at several scales: its lowest Fourier modes, or learned linear features."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive


class FourierLatents(Configured, nn.Module):
    """Describe periodic fields by their lowest Fourier modes, at several cutoffs.

    Use them as the levels of a `MultirateStepper`: long waves, which few modes describe, usually change
    more slowly than short ones. The latents of a level hold the coefficients of a real, orthonormal
    basis of cosines and sines, so those of a coarse level are also among those of every finer level, and
    `decode(encode(x))` is the orthogonal projection of `x` on these waves.

    Args:
        channels: Number of channels of the fields.
        size: Grid points per axis; one to three axes.
        modes: Number of modes per axis at every level, finest level first and strictly decreasing: the
            mean and `modes - 1` waves.

    Shape:
        `(B, channels, *size)` -> a list with `(B, channels * (2 * m - 1) ** len(size))` per level

    Raises:
        ValueError: If there are no levels, the cutoffs do not decrease, the grid has other than one to
            three axes or does not resolve the finest level, or a field has another shape.

    Source: Dhingra and San 2026, "Stabilizing Autoregressive Forecasts in Chaotic Systems via Multi-rate
    Latent Recurrence", section on the latent hierarchy. Deviation: real coefficients of an orthonormal
    basis, and any number of axes, in place of real and imaginary parts of one axis.

    Examples:
        >>> latents = FourierLatents(1, [32], [6, 3])
        >>> [z.shape[1] for z in latents.encode(torch.randn(4, 1, 32))]
        [11, 5]
    """

    basis: Tensor

    @checked
    def __init__(self, channels: int, size: Sequence[int], modes: Sequence[int]) -> None:
        super().__init__()
        check_positive(channels=channels)
        self.size = check_integers("size", size, 1, min_length=1)
        if len(self.size) > 3:
            raise ValueError(f"size must have one to three axes, got {self.size}")
        self.modes = check_integers("modes", modes, 1, min_length=1)
        check_decreasing("modes", self.modes)
        if 2 * self.modes[0] - 1 > min(self.size):
            raise ValueError(
                f"modes must be at most (size + 1) / 2 on every axis, got {self.modes[0]} for the size "
                f"{self.size}"
            )
        basis, order = _basis(self.size, self.modes[0])
        # the waves of coarse levels first, so a level is a slice of the finest one
        level = (order[:, None] >= order.new_tensor(self.modes)).sum(dim=1)
        kept = level.argsort(stable=True)  # not nonzero, which tensors without values do not have
        self.register_buffer("basis", basis[:, kept].float(), persistent=False)
        waves = [(2 * m - 1) ** len(self.size) for m in self.modes]
        self.num_features = [channels * count for count in waves]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of a state, without the batch."""
        return (self.channels, *self.size)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the latents of all levels, as `encode` does."""
        return self.encode(x)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the latents of all levels, finest first."""
        if x.shape[1:] != self.state_shape:
            shape = ", ".join(map(str, self.state_shape))
            raise ValueError(f"states must be (B, {shape}), got shape {tuple(x.shape)}")
        z = (x.flatten(2) @ self.basis) / math.prod(self.size)
        return [z[..., : n // self.channels].flatten(1) for n in self.num_features]

    def decode(self, z: Tensor, level: int) -> Tensor:
        """Return the fields with the latents `z` at a level, whose other modes are zero."""
        z = z.unflatten(1, (self.channels, -1))
        return (z @ self.basis[:, : z.shape[-1]].T).unflatten(2, self.size)


class LinearLatents(Configured, nn.Module):
    """Describe vectors by learned linear features, of a number that differs between levels.

    Use them as the levels of a `MultirateStepper` for states without a grid, such as those of an
    ordinary differential equation. Features of a coarse level are also among those of every finer level.
    The projections start as random orthonormal ones and are learned.

    Args:
        num_inputs: Length of the state vectors.
        num_features: Number of features at every level, finest level first and strictly decreasing.

    Shape:
        `(B, num_inputs)` -> a list with `(B, num_features[i])` per level

    Raises:
        ValueError: If there are no levels, the numbers do not decrease or exceed `num_inputs`, or a
            state has another shape.

    Examples:
        >>> latents = LinearLatents(8, [4, 2])
        >>> [tuple(z.shape) for z in latents.encode(torch.zeros(5, 8))]
        [(5, 4), (5, 2)]
    """

    @checked
    def __init__(self, num_inputs: int, num_features: Sequence[int]) -> None:
        super().__init__()
        check_positive(num_inputs=num_inputs)
        self.num_features = check_integers("num_features", num_features, 1, min_length=1)
        check_decreasing("num_features", self.num_features)
        if self.num_features[0] > num_inputs:
            raise ValueError(
                f"num_features must be at most num_inputs = {num_inputs}, got {self.num_features[0]}"
            )
        self.weight = nn.Parameter(torch.empty(self.num_features[0], num_inputs))
        nn.init.orthogonal_(self.weight)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of a state, without the batch."""
        return (self.num_inputs,)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the latents of all levels, as `encode` does."""
        return self.encode(x)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the latents of all levels, finest first."""
        if x.shape[1:] != self.state_shape:
            raise ValueError(f"states must be (B, {self.num_inputs}), got shape {tuple(x.shape)}")
        z = x @ self.weight.T
        return [z[:, :n] for n in self.num_features]

    def decode(self, z: Tensor, level: int) -> Tensor:
        """Return the vectors with the latents `z` at a level, whose other features are zero."""
        return z @ self.weight[: z.shape[1]]


def check_decreasing(name: str, values: Sequence[int]) -> None:
    """Raise unless every value is below the one before it."""
    if any(b >= a for a, b in pairwise(values)):
        raise ValueError(f"{name} must decrease from level to level, got {list(values)}")


def _basis(size: Sequence[int], modes: int) -> tuple[Tensor, Tensor]:
    """Return the values of the waves at all grid points, `(points, waves)`, and their largest mode.

    The mean square of every wave over the grid is 1.
    """
    axes, waves = len(size), 2 * modes - 1
    # made at once, so that what a file asks for is known before it is allocated
    basis = torch.ones(*size, *(waves,) * axes, dtype=torch.float64)
    order = torch.zeros((waves,) * axes, dtype=torch.long)
    k = torch.arange(modes)
    for axis, n in enumerate(size):
        # the turns of a mode are whole numbers over the size, which keeps long axes exact
        turns = (torch.arange(n)[:, None] * k).remainder(n).double()
        angle = turns * (2 * math.pi / n)
        values = torch.cat([angle.cos(), angle.sin()[:, 1:]], dim=1)
        values[:, 1:] *= math.sqrt(2)
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = values.shape
        basis *= values.view(shape)
        order = torch.maximum(order, torch.cat([k, k[1:]]).view(shape[axes:]))
    return basis.view(math.prod(size), -1), order.flatten()
