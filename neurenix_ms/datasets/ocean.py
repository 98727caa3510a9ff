"""Number of a sample in; density maps of drifting particles and the currents that carry them, out."""

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.nd import expect_positive

LENGTH = 100.0  # km, edge of the periodic square
INTERVAL = 6.0  # hours between maps
SUBSTEPS = 12  # of the integrator, between maps
RELEASE = 5.0  # km, radius of the patch of particles
SPEED = 1.0  # km/h, root mean square of the currents (0.28 m/s)
NUM_WAVES = 24
LONGEST_PERIOD = 120.0  # hours
Velocity = Callable[[Tensor, float], Tensor]


class DriftDensity(Dataset):
    """Particles released in a patch of a sea of eddies, counted into density maps every 6 hours.

    The currents are a sum of random waves of a stream function, so they are exact everywhere and free
    of divergence; positions are stepped by a classical Runge-Kutta scheme in float64. Density
    piles up nowhere but is stretched into filaments, which is what a surrogate has to learn. A
    sink flow adds a convergence, which makes density grow.

    Args:
        root: Folder of the cache.
        num_samples: Number of samples.
        size: Cells along each edge of the square of 100 km.
        steps: Number of steps of 6 hours.
        num_particles: Particles of a sample; together they have mass 1.
        time_reversed: Run the currents backwards in time, with the opposite sign.
        sink: Speed in km/h of a flow towards the place of the release, on top of the currents.
        seed: Where all randomness comes from.
        progress: Show a progress bar while samples are made.

    Shape:
        `density` `(steps + 1, size, size)` in 1 / km2, and `velocity` `(steps + 1, 2, size, size)` in
        km/h along the first and second axis, at the time of every map; float32. The square is
        periodic.

    Raises:
        ValueError: If a count is below 1, or the sink is negative.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     drift = DriftDensity(root, 1, size=16, steps=2, num_particles=64, progress=False)
        ...     {name: tuple(value.shape) for name, value in drift[0].items()}
        {'density': (3, 16, 16), 'velocity': (3, 2, 16, 16)}
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_samples: int,
        size: int = 128,
        steps: int = 12,
        *,
        num_particles: int = 10_000,
        time_reversed: bool = False,
        sink: float = 0.0,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        expect_positive(
            num_samples=num_samples, size=size, steps=steps, num_particles=num_particles
        )
        if not 0 <= sink < math.inf:
            raise ValueError(f"sink must be a speed of 0 or more, got {sink}")
        self.num_samples = num_samples
        self.size = size
        self.steps = steps
        self.num_particles = num_particles
        self.time_reversed = time_reversed
        self.sink = sink
        self.seed = seed
        settings = {
            "size": size,
            "steps": steps,
            "num_particles": num_particles,
            "time_reversed": time_reversed,
            "sink": sink,
            "seed": seed,
        }
        self.cache = SampleCache(root, "drift_density", settings, self._make)
        self.cache.fill(num_samples, progress=progress)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        return self.cache[index]

    def _make(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        centre = LENGTH * torch.rand(2, dtype=torch.float64, generator=generator)
        flow = currents(generator, centre, self.sink)
        velocity = _backwards(flow, self.steps * INTERVAL) if self.time_reversed else flow
        x = centre + _disc(self.num_particles, generator)
        edges = LENGTH * (torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size
        cells = torch.stack(torch.meshgrid(edges, edges, indexing="ij"), dim=-1)
        densities, velocities = [], []
        for step in range(self.steps + 1):
            time = step * INTERVAL
            densities.append(counted(x, self.size))
            velocities.append(velocity(cells, time).movedim(-1, 0))
            x = advanced(x, velocity, time)
        maps = {"density": torch.stack(densities), "velocity": torch.stack(velocities)}
        return {name: value.float() for name, value in maps.items()}


def currents(generator: torch.Generator, centre: Tensor, sink: float = 0.0) -> Velocity:
    """Velocity at places `(..., 2)` and a time, of random waves of a stream function on the torus."""
    numbers = torch.randint(-5, 6, (NUM_WAVES, 2), generator=generator).double()
    numbers[(numbers == 0).all(1)] = 1
    k = 2 * math.pi / LENGTH * numbers
    phase = 2 * math.pi * torch.rand(NUM_WAVES, dtype=torch.float64, generator=generator)
    height = torch.randn(NUM_WAVES, dtype=torch.float64, generator=generator)
    spin = torch.rand(NUM_WAVES, dtype=torch.float64, generator=generator)
    rate = 2 * math.pi / LONGEST_PERIOD * (2 * spin - 1)
    height = height / numbers.square().sum(1)
    mean_square = 0.5 * (height.square() * k.square().sum(1)).sum()
    across = (
        torch.stack([k[:, 1], -k[:, 0]], dim=1) * (height * SPEED / mean_square.sqrt())[:, None]
    )

    def velocity(x: Tensor, time: float) -> Tensor:
        turning = torch.cos(x @ k.T - rate * time + phase) @ across
        return turning - sink * torch.sin(2 * math.pi / LENGTH * (x - centre))

    return velocity


def advanced(
    x: Tensor, velocity: Velocity, time: float, hours: float = INTERVAL, substeps: int = SUBSTEPS
) -> Tensor:
    """Places after some hours, by the classical Runge-Kutta scheme of fourth order."""
    h = hours / substeps
    for step in range(substeps):
        t = time + step * h
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        d = velocity(x + h * c, t + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def counted(x: Tensor, size: int) -> Tensor:
    """Density of particles of mass `1 / len(x)` on the cells of the torus."""
    cell = (x / LENGTH * size).floor().long() % size
    counts = torch.bincount(cell[:, 0] * size + cell[:, 1], minlength=size**2)
    return counts.view(size, size).double() / len(x) / (LENGTH / size) ** 2


def _disc(count: int, generator: torch.Generator) -> Tensor:
    """Places spread evenly over the patch of release."""
    radius, turn = torch.rand(2, count, dtype=torch.float64, generator=generator)
    angle = 2 * math.pi * turn
    return RELEASE * radius.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _backwards(velocity: Velocity, end: float) -> Velocity:
    return lambda x, time: -velocity(x, end - time)
