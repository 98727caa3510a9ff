"""Random currents of a sea with eddies and islands, and release positions of particles."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LENGTH = 100.0  # km, edge of the periodic square
RELEASE = 5.0  # km, radius of the patch of particles
SPEED = 1.0  # km/h, root mean square of the currents (0.28 m/s)
NUM_WAVES = 24
LONGEST_PERIOD = 120.0  # hours
SHELF = 10.0  # km, distance from the coast within which it changes the currents
SMALLEST, LARGEST = 5.0, 10.0  # km, radius of an island
Velocity = Callable[[Tensor, float], Tensor]
Seeding = Literal["anywhere", "converging", "hyperbolic", "eddies"]


@dataclass
class Eddies:
    """Random waves of a stream function on the torus: `sum height * sin(k . x - rate * t + phase)`.

    Args:
        k: Wave vectors `(W, 2)`, in 1 / km.
        rate: Angular speeds `(W,)`, in 1 / h.
        phase: Phases `(W,)`.
        height: Heights `(W,)`, in km2 / h.
    """

    k: Tensor
    rate: Tensor
    phase: Tensor
    height: Tensor

    @classmethod
    def random(cls, generator: torch.Generator) -> "Eddies":
        """Draw waves of up to five crests per axis, scaled to the root mean square `SPEED`."""
        numbers = torch.randint(-5, 6, (NUM_WAVES, 2), generator=generator).double()
        numbers[(numbers == 0).all(1)] = 1
        k = 2 * math.pi / LENGTH * numbers
        phase = 2 * math.pi * torch.rand(NUM_WAVES, dtype=torch.float64, generator=generator)
        height = torch.randn(NUM_WAVES, dtype=torch.float64, generator=generator)
        spin = torch.rand(NUM_WAVES, dtype=torch.float64, generator=generator)
        rate = 2 * math.pi / LONGEST_PERIOD * (2 * spin - 1)
        height = height / numbers.square().sum(1)
        mean_square = 0.5 * (height.square() * k.square().sum(1)).sum()
        return cls(k, rate, phase, height * SPEED / mean_square.sqrt())

    def stream(self, x: Tensor, time: float) -> Tensor:
        """Return the stream function at positions `(..., 2)`."""
        return torch.sin(self._angle(x, time)) @ self.height

    def velocity(self, x: Tensor, time: float) -> Tensor:
        """Return the velocity `(d psi / d x2, -d psi / d x1)` at positions `(..., 2)`."""
        across = torch.stack([self.k[:, 1], -self.k[:, 0]], dim=1) * self.height[:, None]
        return torch.cos(self._angle(x, time)) @ across

    def _angle(self, x: Tensor, time: float) -> Tensor:
        return x @ self.k.T - self.rate * time + self.phase


@dataclass
class Islands:
    """Round islands on the torus.

    Args:
        centers: Their centers `(N, 2)`, in km.
        radii: Their radii `(N,)`, in km.
    """

    centers: Tensor
    radii: Tensor

    @classmethod
    def random(cls, count: int, clear_of: Tensor, generator: torch.Generator) -> "Islands":
        """Draw islands whose shelves do not reach a patch of particles released at `clear_of`."""
        places: list[Tensor] = []
        radii: list[Tensor] = []
        while len(places) < count:
            place, radius = LENGTH * _uniform(2, generator), _uniform(1, generator)[0]
            radius = SMALLEST + (LARGEST - SMALLEST) * radius
            if wrapped(place - clear_of).norm() > radius + SHELF + RELEASE:
                places.append(place)
                radii.append(radius)
        return cls(torch.stack(places), torch.stack(radii))

    def sea(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of the stream function at positions `(..., 2)`, and its gradient.

        It is 0 on land, 1 beyond the shelf and `6 d^5 - 15 d^4 + 10 d^3` in between, with the distance
        d to the coast in units of the shelf. The factors of several islands are multiplied.
        """
        out, slope = torch.ones_like(x[..., 0]), torch.zeros_like(x)
        for center, radius in zip(self.centers, self.radii, strict=True):
            to = wrapped(x - center)
            distance = to.norm(dim=-1)
            d = ((distance - radius) / SHELF).clamp(0, 1)
            one = d**3 * (10 - 15 * d + 6 * d**2)
            steep = 30 * (d * (1 - d)).square() / SHELF / distance.clamp(min=radius.item())
            slope = slope * one[..., None] + (out * steep)[..., None] * to
            out = out * one
        return out, slope

    def land(self, edges: Tensor) -> Tensor:
        """Return which cells between the edges `(N + 1,)` of both axes are completely land."""
        middle, half = (edges[1:] + edges[:-1]) / 2, edges.diff() / 2
        x, reach = (torch.stack(torch.meshgrid(y, y, indexing="ij"), -1) for y in (middle, half))
        land = torch.zeros(x.shape[:-1], dtype=torch.bool)
        for center, radius in zip(self.centers, self.radii, strict=True):
            land |= (wrapped(x - center).abs() + reach).norm(dim=-1) <= radius
        return land


def currents(
    eddies: Eddies, center: Tensor, sink: float = 0.0, islands: Islands | None = None
) -> Velocity:
    """Return the velocity as a function of positions `(..., 2)` and time: eddies, sink and coasts.

    With the factor `s` of the islands, the stream function is `s * psi`, and the flow to the center is
    multiplied by `s`. Both vanish at the coast, so no particle reaches it.
    """

    def open_sea(x: Tensor, time: float) -> Tensor:
        return eddies.velocity(x, time) - sink * torch.sin(2 * math.pi / LENGTH * (x - center))

    if islands is None:
        return open_sea

    def with_coasts(x: Tensor, time: float) -> Tensor:
        share, slope = islands.sea(x)
        along = torch.stack([slope[..., 1], -slope[..., 0]], dim=-1)
        return share[..., None] * open_sea(x, time) + eddies.stream(x, time)[..., None] * along

    return with_coasts


def backwards(velocity: Velocity, end: float) -> Velocity:
    """Return the currents backwards in time from an end, with the opposite sign."""
    return lambda x, time: -velocity(x, end - time)


def advanced(x: Tensor, velocity: Velocity, time: float, hours: float, substeps: int) -> Tensor:
    """Advance positions by some hours with the classical fourth-order Runge-Kutta scheme."""
    h = hours / substeps
    for step in range(substeps):
        t = time + step * h
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        d = velocity(x + h * c, t + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def place_for(velocity: Velocity, seeding: Seeding, otherwise: Tensor) -> Tensor:
    """Choose the position of the release by the currents at time 0.

    With `J` the gradient of the velocity, `div` its trace, `curl = J21 - J12`, and the strain
    `sigma = sqrt((J11 - J22)^2 + (J12 + J21)^2)`:

    * "converging": of positions 1 km apart, the one where `(div - sigma) / 2`, the rate at which
      particles converge to a line, is most negative (Serra and Haller 2016).
    * "hyperbolic": of the stagnation points with `det J < 0`, saddles, the one with the largest
      `sigma`.
    * "eddies": of the stagnation points, the one where `sigma^2 - curl^2` is most negative (Okubo
      1970, Weiss 1991).
    """
    if seeding == "anywhere":
        return otherwise
    x = _grid(100 if seeding == "converging" else 40)
    if seeding != "converging":
        x = stagnation_points(velocity, x)
    j = gradient(velocity, x)
    strain = ((j[:, 0, 0] - j[:, 1, 1]) ** 2 + (j[:, 0, 1] + j[:, 1, 0]) ** 2).sqrt()
    if seeding == "converging":
        score = j.diagonal(dim1=1, dim2=2).sum(1) - strain
    elif seeding == "hyperbolic":
        score = torch.where(torch.linalg.det(j) < 0, -strain, math.inf)
    else:
        score = strain**2 - (j[:, 1, 0] - j[:, 0, 1]) ** 2
    return x[score.argmin()] % LENGTH


def stagnation_points(velocity: Velocity, x: Tensor) -> Tensor:
    """Find stagnation points at time 0 by Newton's method from positions `(N, 2)`, with duplicates."""
    for _ in range(40):
        v, ((a, b), (c, d)) = velocity(x, 0.0), gradient(velocity, x).permute(1, 2, 0)
        step = torch.stack([d * v[:, 0] - b * v[:, 1], a * v[:, 1] - c * v[:, 0]], dim=1)
        step = step / (a * d - b * c)[:, None]
        x = x - step * (1 / step.norm(dim=1, keepdim=True)).clamp(max=1)  # 1 km at most
    return x[velocity(x, 0.0).norm(dim=1) < 1e-9]


def gradient(velocity: Velocity, x: Tensor, time: float = 0.0) -> Tensor:
    """Return the derivatives of both components (rows) by both axes (columns) at positions `(N, 2)`."""
    of_one = torch.func.jacrev(lambda place: velocity(place, time))
    return torch.func.vmap(of_one)(x)


def wrapped(x: Tensor) -> Tensor:
    """Return the shortest displacement on the torus equivalent to `x`."""
    return (x + LENGTH / 2) % LENGTH - LENGTH / 2


def _grid(per_axis: int) -> Tensor:
    axis = LENGTH * torch.arange(per_axis, dtype=torch.float64) / per_axis
    return torch.cartesian_prod(axis, axis)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=generator)
