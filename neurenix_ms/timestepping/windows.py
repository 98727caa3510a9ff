"""Batches of short windows along trajectories, with a separate stride for every network."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_numbers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import renamed_classes

Windows = Literal["all", "start"]


class StandardizedNetwork(Configured, nn.Module):
    """Network on states standardized to mean 0 and variance 1, and changes scaled to variance 1.

    The change over a short stride is a hundred times smaller than the state, and over a long one as
    large. After scaling both are learned equally fast, and small errors of small changes count.

    Args:
        network: Network from standardized states to scaled changes.
        mean: Mean of every channel (axis 1) of the states.
        std: Standard deviation of every channel.
        scale: Standard deviation of the change of every channel.

    Shape:
        `(B, *D)` -> the same

    Raises:
        ValueError: If the lists are empty or differ in length, or a standard deviation is 0.

    Examples:
        >>> network = StandardizedNetwork(nn.Identity(), mean=[1.0], std=[2.0], scale=[4.0])
        >>> network(torch.tensor([[3.0]])).item()
        4.0
    """

    units: Tensor

    @checked
    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network
        self.mean = check_numbers("mean", mean, min_length=1)
        self.std = check_numbers("std", std)
        self.scale = check_numbers("scale", scale)
        lengths = [len(self.mean), len(self.std), len(self.scale)]
        if len(set(lengths)) > 1:
            raise ValueError(f"mean, std and scale must be of one length, got {lengths}")
        if 0 in self.std:
            raise ValueError(f"std must not hold 0, got {self.std}")
        units = torch.tensor([self.mean, self.std, self.scale])
        self.register_buffer("units", units, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, std, scale = (per_channel(unit, x.ndim) for unit in self.units)
        return scale * self.network((x - mean) / std)


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """Reshape `(..., C)` to broadcast over states `(..., B, C, *S)` with `ndim` axes from B on."""
    return values.unsqueeze(-2)[(..., *(None,) * (ndim - 2))]


class WindowSource:
    """Windows of `horizon` strides along trajectories, drawn for several strides at once.

    Args:
        trajectories: `(N, T, *D)`.
        step_sizes: One stride per network.
        horizon: Strides per window; fewer if the trajectories are too short for a large stride.
        windows: "all" for windows anywhere, "start" for those at row 0 only.
    """

    def __init__(
        self, trajectories: Tensor, step_sizes: Sequence[int], horizon: int, windows: Windows
    ) -> None:
        num_samples, num_rows = trajectories.shape[:2]
        self.rows = trajectories.flatten(0, 1)
        self.num_samples, self.num_rows = num_samples, num_rows
        device = trajectories.device
        self.strides = torch.tensor(step_sizes, device=device)
        self.lengths = ((num_rows - 1) // self.strides).clamp(max=horizon)
        starts = num_rows - self.strides * self.lengths
        self.num_starts = starts if windows == "all" else torch.ones_like(starts)
        counted = torch.arange(1, horizon + 1, device=device) <= self.lengths[:, None]
        self.weights = counted / self.lengths[:, None]  # (K, horizon)
        self.offsets = torch.arange(horizon + 1, device=device).clamp(max=self.lengths[:, None])

    def drawn(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return a random batch per stride, `(K, B, horizon + 1, *D)`."""
        u = torch.rand(2, len(self.strides), batch_size, generator=generator, dtype=torch.float64)
        return self._at(u.to(self.rows.device))

    def spread(self, batch_size: int) -> Tensor:
        """Return the same windows every time, spread evenly over trajectories and rows."""
        i = torch.arange(batch_size, dtype=torch.float64, device=self.rows.device)
        # multiples of the golden ratio are evenly spread too, and not correlated with the first row
        u = torch.stack([(i + 0.5) / batch_size, (i * 0.6180339887498949) % 1])
        return self._at(u[:, None].expand(-1, len(self.strides), -1))

    def _at(self, u: Tensor) -> Tensor:
        sample = (u[0] * self.num_samples).long()
        first = (u[1] * self.num_starts[:, None]).long()
        offsets = (self.offsets * self.strides[:, None])[:, None]
        return self.rows[(sample * self.num_rows + first)[..., None] + offsets]

    def change_scale(self, num_windows: int = 4096) -> Tensor:
        """Return the standard deviation of the change over each stride by channel, `(K, C)`."""
        windows = self.spread(num_windows)
        change = (windows[:, :, 1] - windows[:, :, 0]).transpose(1, 2).flatten(2)
        return nonzero(change.square().mean(dim=-1).sqrt())


def channel_units(trajectories: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel of trajectories `(N, T, C, ...)`."""
    flat = trajectories.transpose(1, 2).transpose(0, 1).flatten(1)
    return flat.mean(dim=1), nonzero(flat.std(dim=1))


def nonzero(scale: Tensor) -> Tensor:
    """Replace scales near 0 by 1, so that constant channels are not divided by 0."""
    return torch.where(scale > 1e-12, scale, torch.ones_like(scale))


__getattr__ = renamed_classes(__name__, {"StandardisedNetwork": "StandardizedNetwork"})
