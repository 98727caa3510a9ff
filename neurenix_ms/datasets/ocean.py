"""Dataset of density maps of drifting particles and the currents that carry them."""

import math
import os
from typing import get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive, choose
from neurenix_ms._core.seeds import generator_of
from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.datasets.currents import (
    LENGTH,
    RELEASE,
    Eddies,
    Islands,
    Seeding,
    advanced,
    backwards,
    currents,
    place_for,
)

INTERVAL = 6.0  # hours between maps
SUBSTEPS = 12  # of the integrator, between maps


class DriftDensity(Dataset[dict[str, Tensor]]):
    """Density maps, every 6 hours, of particles released in a patch of a sea with eddies.

    The currents are a sum of random waves of a stream function, so they are exact everywhere and
    divergence-free; positions are advanced by a classical Runge-Kutta scheme in float64. The flow does
    not concentrate density but stretches it into filaments, which a surrogate has to learn. A sink flow
    adds a convergence, which increases the density.

    The position of the release is random or chosen by the currents at that time. With the velocity `v`
    and `sigma = sqrt((d1 v1 - d2 v2)^2 + (d2 v1 + d1 v2)^2)` it is:

    * "converging": where particles converge to a line fastest, that is where `(div v - sigma) / 2`,
      the smaller rate of strain, is most negative.
    * "hyperbolic": of all saddles, stagnation points with `det(grad v) < 0`, the one with the largest
      `sigma`. The flow stretches the patch there.
    * "eddies": of all stagnation points, the one where the Okubo-Weiss number `sigma^2 - curl(v)^2` is
      most negative. The patch stays together there for the lifetime of the eddy.

    With islands, the stream function is multiplied by a function that is 0 on land, rises smoothly
    over 10 km and is 1 at sea. So the coast is a streamline, and no particle reaches land.

    Args:
        root: Folder of the cache.
        num_samples: Number of samples.
        size: Cells along each edge of the square of 100 km.
        steps: Number of steps of 6 hours.
        num_particles: Particles of a sample; together they have mass 1.
        time_reversed: Run the currents backwards in time, with the opposite sign.
        sink: Speed in km/h of a flow towards the position of the release, added to the currents; away
            from it if time is reversed.
        seeding: Position of the release: "anywhere", or as above, by the currents without the sink.
        land: Number of round islands of 5 to 10 km radius, none of them near the release.
        cell_sizes: Ratio of the widest cell of an axis to its narrowest, for a smoothly stretched grid:
            edges at `100 km * (i + a sin(2 pi i) / (2 pi))`, i from 0 to 1, with `a` from that ratio.
            None is the even grid, without the item below.
        seed: Seed of all random numbers.
        progress: Show a progress bar while samples are computed.

    Shape:
        `density` `(steps + 1, size, size)` in 1 / km2, and `velocity` `(steps + 1, 2, size, size)` in
        km/h along the first and second axis, at the time of every density map. With `cell_sizes` also
        `cell_sizes` `(2, size, size)`, the edges of every cell in km along both axes: their product
        times the density is mass. With `land` also `land` `(size, size)`, 1 where a whole cell is land
        and 0 elsewhere. All float32. The square is periodic.

    Raises:
        ValueError: If a count is below 1, the sink or the number of islands is negative, the ratio of
            cell sizes is below 1, or the seeding is unknown.
        IndexError: If there is no such sample.

    Source: the line of strongest attraction is that of Serra and Haller 2016, Chaos 26, 053110; the
    number of eddies that of Okubo 1970, Deep-Sea Research 17, 445, and Weiss 1991, Physica D 48, 273.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     drift = DriftDensity(root, 1, size=16, steps=2, num_particles=64, progress=False)
        ...     {name: tuple(value.shape) for name, value in drift[0].items()}
        {'density': (3, 16, 16), 'velocity': (3, 2, 16, 16)}
    """

    @checked
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
        seeding: Seeding = "anywhere",
        land: int = 0,
        cell_sizes: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        check_positive(num_samples=num_samples, size=size, steps=steps, num_particles=num_particles)
        if not 0 <= sink < math.inf:
            raise ValueError(f"sink must be a speed of 0 or more, got {sink}")
        choose(dict.fromkeys(get_args(Seeding)), seeding, "seeding")
        if land < 0:
            raise ValueError(f"land must be a number of islands, 0 or more, got {land}")
        if cell_sizes is not None and not 1 <= cell_sizes < math.inf:
            raise ValueError(
                f"cell_sizes must be a ratio of 1 or more, widest over narrowest, got {cell_sizes}"
            )
        self.num_samples = num_samples
        self.size = size
        self.steps = steps
        self.num_particles = num_particles
        self.time_reversed = time_reversed
        self.sink = sink
        self.seeding: Seeding = seeding
        self.land = land
        self.cell_sizes = cell_sizes
        self.seed = seed
        settings = {
            "size": size,
            "steps": steps,
            "num_particles": num_particles,
            "time_reversed": time_reversed,
            "sink": sink,
            "seeding": seeding,
            "land": land,
            "cell_sizes": cell_sizes,
            "seed": seed,
        }
        self.cache = SampleCache(root, "drift_density", settings, self._make)
        self.cache.fill(num_samples, progress=progress)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index must be below {self.num_samples}, got {index}")
        return self.cache[index]

    def _make(self, index: int) -> dict[str, Tensor]:
        generator = generator_of(self.seed, index)
        center = LENGTH * torch.rand(2, dtype=torch.float64, generator=generator)
        eddies = Eddies.random(generator)
        end = self.steps * INTERVAL
        plain = currents(eddies, center)
        plain = backwards(plain, end) if self.time_reversed else plain
        center = place_for(plain, self.seeding, center)
        x = center + _disc(self.num_particles, generator)
        islands = Islands.random(self.land, center, generator) if self.land else None
        velocity = currents(eddies, center, self.sink, islands)
        velocity = backwards(velocity, end) if self.time_reversed else velocity
        edges = grid_edges(self.size, self.cell_sizes or 1.0)
        cells = _pairs((edges[1:] + edges[:-1]) / 2)
        densities, velocities = [], []
        for step in range(self.steps + 1):
            time = step * INTERVAL
            densities.append(counted(x, edges))
            velocities.append(velocity(cells, time).movedim(-1, 0))
            if step < self.steps:
                x = advanced(x, velocity, time, INTERVAL, SUBSTEPS)
        maps = {"density": torch.stack(densities), "velocity": torch.stack(velocities)}
        if self.cell_sizes is not None:
            maps["cell_sizes"] = _pairs(edges.diff()).movedim(-1, 0)
        if islands is not None:
            maps["land"] = islands.land(edges)
        return {name: value.float() for name, value in maps.items()}


def grid_edges(size: int, ratio: float = 1.0) -> Tensor:
    """Return the edges `(size + 1,)` of the cells of an axis, with a ratio of widest to narrowest.

    The ratio is that of the local stretching; that of the cells approaches it for large sizes.
    """
    i = torch.arange(size + 1, dtype=torch.float64) / size
    strength = (ratio - 1) / (ratio + 1)
    return LENGTH * (i + strength * torch.sin(2 * math.pi * i) / (2 * math.pi))


def counted(x: Tensor, edges: Tensor) -> Tensor:
    """Return the density of particles of mass `1 / len(x)` on the cells of the torus between edges."""
    size = len(edges) - 1
    cell = torch.bucketize(x % LENGTH, edges[1:-1], right=True)
    counts = torch.bincount(cell[:, 0] * size + cell[:, 1], minlength=size**2)
    return counts.view(size, size).double() / len(x) / _pairs(edges.diff()).prod(-1)


def _disc(count: int, generator: torch.Generator) -> Tensor:
    """Draw positions uniformly over the patch of release."""
    radius, turn = torch.rand(2, count, dtype=torch.float64, generator=generator)
    angle = 2 * math.pi * turn
    return RELEASE * radius.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _pairs(x: Tensor) -> Tensor:
    """Return one number per cell and axis, `(N, N, 2)`."""
    return torch.stack(torch.meshgrid(x, x, indexing="ij"), dim=-1)
