"""Wake behind a cylinder by a small lattice-Boltzmann solver, and proper orthogonal decomposition."""

import os
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive
from neurenix_ms.datasets.cache import SampleCache

# nine velocities, x first; weights of the equilibrium; the index of each opposite velocity
VELOCITIES = torch.tensor(
    [[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [-1, 1], [-1, -1], [1, -1]]
)
WEIGHTS = torch.tensor([16, 4, 4, 4, 4, 1, 1, 1, 1], dtype=torch.float64) / 36
OPPOSITE = [0, 3, 4, 1, 2, 7, 8, 5, 6]


@checked
def cylinder_wake(
    reynolds: float = 100.0,
    *,
    size: tuple[int, int] = (128, 56),
    diameter: float = 10.0,
    speed: float = 0.1,
    num_times: int = 400,
    interval: int = 20,
    warm_up: int = 8_000,
    progress: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Solve the flow past a cylinder, which sheds vortices on alternating sides.

    The fluid consists of particles with nine velocities, which relax towards an equilibrium (BGK) and
    bounce back from the cylinder. It enters on the left at a constant speed and leaves on the right;
    the channel is periodic across the flow. From a Reynolds number of about 50 on, the wake oscillates
    with a period of about `5 * diameter / speed` steps. Small grids reproduce the kind of flow, but not
    the drag to three digits.

    Args:
        reynolds: Reynolds number, speed times diameter divided by viscosity.
        size: Cells along the flow and across it.
        diameter: Diameter of the cylinder, in cells.
        speed: Speed of the inflow, in cells per step; well below the speed of sound, 0.58.
        num_times: Number of states.
        interval: Steps between two states.
        warm_up: Steps before the first state, in which the oscillation develops.
        progress: Show a progress bar.
        root: Folder of a cache, from which later calls with the same arguments read the result; None
            disables it.

    Shape:
        `t` `(T,)` in steps, `u` `(T, 2, *size)`, `solid` `size`, all float64

    Raises:
        ValueError: If a count is below 1, the cylinder does not fit, the speed is not between 0 and
            0.3, or the viscosity is too small for the grid.

    Source: Qian, d'Humieres and Lallemand 1992, "Lattice BGK models for Navier-Stokes equation".

    Examples:
        >>> wake = cylinder_wake(size=(24, 16), diameter=4.0, num_times=3, interval=2, warm_up=1)
        >>> wake["u"].shape
        torch.Size([3, 2, 24, 16])
    """
    check_positive(num_times=num_times, interval=interval, warm_up=warm_up)
    length, width = size
    if not 0 < speed <= 0.3:
        raise ValueError(f"speed must be above 0 and at most 0.3, got {speed}")
    if not 2 <= diameter <= min(width / 2, length / 4):
        raise ValueError(
            f"diameter must be from 2 to half the width and a quarter of the length of {size}, "
            f"got {diameter}"
        )
    relaxation = 0.5 + 3 * speed * diameter / reynolds if reynolds > 0 else 0.0
    if relaxation < 0.505:
        raise ValueError(
            f"reynolds must be above 0 and at most {600 * speed * diameter:g} on this grid, "
            f"got {reynolds}"
        )
    settings = {
        "reynolds": reynolds,
        "size": list(size),
        "diameter": diameter,
        "speed": speed,
        "num_times": num_times,
        "interval": interval,
        "warm_up": warm_up,
    }

    def make(_: int) -> dict[str, Tensor]:
        flow = _Flow(size, diameter, speed, relaxation)
        return flow.run(num_times, interval, warm_up, progress)

    return make(0) if root is None else SampleCache(root, "cylinder_wake", settings, make)[0]


class _Flow:
    """Particle densities `(9, *size)` and their time step."""

    def __init__(
        self, size: tuple[int, int], diameter: float, speed: float, relaxation: float
    ) -> None:
        length, width = size
        x, y = torch.meshgrid(torch.arange(length), torch.arange(width), indexing="ij")
        self.solid = (x - length / 4) ** 2 + (y - width / 2) ** 2 <= diameter**2 / 4
        self.relaxation = relaxation
        self.velocities = VELOCITIES.double()
        inflow = torch.zeros(2, 1, width, dtype=torch.float64)
        inflow[0] = speed
        self.inflow = self.equilibrium(torch.ones(1, width, dtype=torch.float64), inflow)
        start = inflow.expand(2, *size) * ~self.solid
        # a sideways perturbation, without which the wake stays symmetric for long
        start[1] = 0.5 * speed * torch.sin(2 * torch.pi * x / (6 * diameter)) * ~self.solid
        self.f = self.equilibrium(torch.ones(size, dtype=torch.float64), start)

    def equilibrium(self, density: Tensor, u: Tensor) -> Tensor:
        along = torch.tensordot(self.velocities, u, dims=1)
        weights = WEIGHTS.view(-1, 1, 1)
        return weights * density * (1 + 3 * along + 4.5 * along**2 - 1.5 * u.square().sum(0))

    def moments(self) -> tuple[Tensor, Tensor]:
        density = self.f.sum(0)
        return density, torch.tensordot(self.velocities.T, self.f, dims=1) / density

    def step(self) -> None:
        bounced = self.f[OPPOSITE][:, self.solid]
        relaxed = self.f + (self.equilibrium(*self.moments()) - self.f) / self.relaxation
        relaxed[:, self.solid] = bounced
        moved = [
            torch.roll(part, tuple(shift), (0, 1))
            for part, shift in zip(relaxed, VELOCITIES.tolist(), strict=True)
        ]
        self.f = torch.stack(moved)
        self.f[:, :1] = self.inflow
        self.f[:, -1] = self.f[:, -2]

    def run(self, num_times: int, interval: int, warm_up: int, progress: bool) -> dict[str, Any]:
        from tqdm.auto import tqdm

        last = warm_up + (num_times - 1) * interval
        states = []
        for i in tqdm(range(1, last + 1), desc="solving the wake", disable=not progress):
            self.step()
            if i >= warm_up and (i - warm_up) % interval == 0:
                states.append(self.moments()[1] * ~self.solid)
        times = interval * torch.arange(num_times, dtype=torch.float64)
        return {"t": times, "u": torch.stack(states), "solid": self.solid.double()}


@checked
def pod(fields: Tensor, num_modes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the proper orthogonal decomposition of a sequence of fields.

    Use it to forecast a flow by few coefficients, or as the linear baseline of a network. Traveling
    structures need many modes; `MultiScaleNIF` needs fewer numbers for them.

    Args:
        fields: `(T, *D)`.
        num_modes: Number of modes, ordered by decreasing variance.

    Returns:
        Coefficients `(T, num_modes)`, orthonormal modes `(num_modes, *D)` and the mean `D`, so that
        `fields` is about `mean + coefficients @ modes`.

    Raises:
        ValueError: If `num_modes` is below 1 or above the number of modes.

    Examples:
        >>> fields = torch.randn(20, 1, 4, 3)
        >>> coefficients, modes, mean = pod(fields, 12)
        >>> torch.allclose(mean + torch.tensordot(coefficients, modes, 1), fields, atol=1e-5)
        True
    """
    most = min(len(fields), fields[0].numel())
    if not 1 <= num_modes <= most:
        raise ValueError(f"num_modes must be from 1 to {most}, got {num_modes}")
    mean = fields.mean(dim=0)
    u, s, v = torch.linalg.svd((fields - mean).flatten(1), full_matrices=False)
    modes = v[:num_modes].unflatten(1, fields.shape[1:])
    return u[:, :num_modes] * s[:num_modes], modes, mean
