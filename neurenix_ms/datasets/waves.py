"""Fields over space and time: a traveling wave, chaotic waves in 1-D and turbulence in 2-D."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive
from neurenix_ms.datasets.cache import SampleCache
from neurenix_ms.datasets.spectral import etdrk4, trajectory

Sample = dict[str, Tensor]

MOST_STEPS = 10**9  # of a solver between two times


@checked
def travelling_wave(omega: float = 4.0, num_times: int = 10, num_points: int = 200) -> Sample:
    """Compute a wave packet that travels without changing, the smallest test of an implicit model.

    `u = exp(-1000 xi**2) sin(omega xi)` with `xi = x - 0.2 - 0.006 t`, for x from 0 to 1 and t from 0
    to 100. It is exact. A linear basis needs many modes for it; with `omega` 400 a network must
    represent high frequencies as well.

    Args:
        omega: Wave number; 4 and 400 are the published cases.
        num_times: Number of times.
        num_points: Number of points.

    Shape:
        `t` `(T,)`, `x` `(N,)`, `u` `(T, N)`, all float64

    Raises:
        ValueError: If a count is below 1.

    Source: Pan, Brunton and Kutz 2023, JMLR 24, section 3.

    Examples:
        >>> wave = travelling_wave()
        >>> wave["u"].shape
        torch.Size([10, 200])
    """
    check_positive(num_times=num_times, num_points=num_points)
    t = torch.linspace(0, 100, num_times, dtype=torch.float64)
    x = torch.linspace(0, 1, num_points, dtype=torch.float64)
    xi = x - 0.2 - 0.006 * t[:, None]
    return {"t": t, "x": x, "u": torch.exp(-1000 * xi**2) * torch.sin(omega * xi)}


@checked
def kuramoto_sivashinsky(
    nu: float | Sequence[float],
    *,
    num_points: int = 256,
    num_times: int = 101,
    end_time: float = 10.0,
    length: float = 32 * math.pi,
    time_step: float = 0.01,
    initial: Tensor | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Sample:
    """Solve `u_t + u u_x + u_xx + nu u_xxxx = 0` on a ring, for one or several values of `nu`.

    Long waves grow, short waves are damped, and the nonlinear term transfers energy between them, so
    fields are smooth in space and chaotic in time. With `nu` from 0.2 to 0.28 it is the published
    parametric case of neural implicit flow; 1 is the usual form. Products are dealiased by the
    two-thirds rule, and time steps are those of `etdrk4`, all in float64.

    Args:
        nu: Strength of the damping, a positive number or several; all start from the same field.
        num_points: Number of points on the ring.
        num_times: Number of times, from 0 to `end_time`, including those before the field is chaotic.
        end_time: Last time.
        length: Circumference of the ring.
        time_step: Longest step of the solver; it is shortened so that steps end at the times.
        initial: Field at time 0, `(N,)`, in place of random waves of length `length / 6` and longer.
        seed: Seed of the random waves.
        root: Folder of a cache, from which later calls with the same arguments read the result; None
            disables it.

    Shape:
        `nu` `()`, `t` `(T,)`, `x` `(N,)`, `u` `(T, N)`, all float64; with several values `nu` `(M,)` and
        `u` `(M, T, N)`

    Raises:
        ValueError: If a number is out of range, or `initial` has another length.

    Source: Kassam and Trefethen 2005, section 4; Pan, Brunton and Kutz 2023, JMLR 24, section 3.1.

    Examples:
        >>> waves = kuramoto_sivashinsky([0.2, 0.28], num_points=64, num_times=3, end_time=0.2)
        >>> waves["u"].shape
        torch.Size([2, 3, 64])
    """
    values = torch.as_tensor(nu, dtype=torch.float64)
    _check_grid(num_points, num_times)
    _check_above_zero(end_time=end_time, length=length, time_step=time_step)
    if values.ndim > 1 or not values.numel() or not bool((values > 0).all()):
        raise ValueError(f"nu must be one positive number or several, got {nu}")
    start = _given(initial, (num_points,))

    def make(_: int) -> Sample:
        x = length * torch.arange(num_points, dtype=torch.float64) / num_points
        u = _random_waves(x / length, seed) if start is None else start
        k = _wave_numbers(num_points, length)
        kept = _kept(k)
        half_derivative = -0.5j * k * kept

        def nonlinear(v: Tensor) -> Tensor:
            return half_derivative * torch.fft.rfft(torch.fft.irfft(v, num_points).square())

        steps, step = _divided(end_time, num_times, time_step)
        linear = k**2 - values[..., None] * k**4
        v = (torch.fft.rfft(u) * kept).expand(linear.shape)
        states = trajectory(etdrk4(linear, nonlinear, step), v, num_times, steps)
        u = torch.fft.irfft(states, num_points)
        return {"nu": values, "t": _times(end_time, num_times), "x": x, "u": u.movedim(0, -2)}

    settings = {
        "nu": values.tolist(),
        "num_points": num_points,
        "num_times": num_times,
        "end_time": end_time,
        "length": length,
        "time_step": time_step,
    }
    return _kept_under(root, "kuramoto_sivashinsky", settings | _origin(start, seed), make)


@checked
def turbulence2d(
    viscosity: float = 1e-3,
    *,
    num_points: int = 64,
    num_times: int = 51,
    end_time: float = 10.0,
    time_step: float = 0.02,
    initial: Tensor | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Sample:
    """Solve for the vorticity of decaying turbulence on a square torus of edge 2 pi.

    Random vortices mix, merge and decay: `w_t + u . grad(w) = viscosity * laplacian(w)`, where `u` is
    the velocity of the vorticity `w`. Products are dealiased by the two-thirds rule, and time steps are
    those of `etdrk4`, all in float64. Without viscosity energy and enstrophy are conserved.

    Args:
        viscosity: Kinematic viscosity; velocities are about 1. 0 is allowed for short times.
        num_points: Number of points along each edge.
        num_times: Number of times, from 0 to `end_time`.
        end_time: Last time; a large vortex turns once in about 3.
        time_step: Longest step; the flow must not advance by more than a point or two per step.
        initial: Vorticity at time 0, `(N, N)`, in place of a random one; its mean is dropped.
        seed: Seed of the random vorticity.
        root: Folder of a cache, from which later calls with the same arguments read the result; None
            disables it.

    Shape:
        `t` `(T,)`, `x` `(N,)` of both axes, `vorticity` `(T, N, N)`: time, x, y; all float64

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.

    Source: McWilliams 1984, J. Fluid Mech. 146, 21, eq. (2.4) for the initial spectrum.

    Examples:
        >>> flow = turbulence2d(num_points=16, num_times=3, end_time=0.1)
        >>> flow["vorticity"].shape
        torch.Size([3, 16, 16])
    """
    _check_grid(num_points, num_times)
    _check_above_zero(end_time=end_time, time_step=time_step)
    if not viscosity >= 0:
        raise ValueError(f"viscosity must be 0 or more, got {viscosity}")
    size = (num_points, num_points)
    start = _given(initial, size)

    def make(_: int) -> Sample:
        x = 2 * math.pi * torch.arange(num_points, dtype=torch.float64) / num_points
        ky = _wave_numbers(num_points, 2 * math.pi)
        kx = torch.fft.fftfreq(num_points, 1 / num_points, dtype=torch.float64)[:, None]
        square = kx**2 + ky**2
        kept = _kept(kx) & _kept(ky) & (square > 0)
        inverse = kept / square.clamp(min=1)

        def nonlinear(v: Tensor) -> Tensor:
            stream = v * inverse
            parts = torch.stack([1j * ky * stream, -1j * kx * stream, 1j * kx * v, 1j * ky * v])
            along_x, along_y, w_x, w_y = torch.fft.irfft2(parts, size)
            return kept * torch.fft.rfft2(-along_x * w_x - along_y * w_y)

        w = _random_vorticity(square, kept, size, seed) if start is None else start
        steps, step = _divided(end_time, num_times, time_step)
        advance = etdrk4(-viscosity * square, nonlinear, step)
        states = trajectory(advance, torch.fft.rfft2(w) * kept, num_times, steps)
        t = _times(end_time, num_times)
        return {"t": t, "x": x, "vorticity": torch.fft.irfft2(states, size)}

    settings = {
        "viscosity": viscosity,
        "num_points": num_points,
        "num_times": num_times,
        "end_time": end_time,
        "time_step": time_step,
    }
    return _kept_under(root, "turbulence2d", settings | _origin(start, seed), make)


def _random_waves(x: Tensor, seed: int) -> Tensor:
    """Return the sum of six waves around a ring of length 1, of random amplitudes and phases."""
    generator = torch.Generator().manual_seed(seed)
    height, phase = torch.rand(2, 6, dtype=torch.float64, generator=generator)
    k = torch.arange(1, 7, dtype=torch.float64)
    return (height * torch.cos(2 * math.pi * (x[:, None] * k + phase))).sum(-1)


def _random_vorticity(square: Tensor, kept: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """Return a vorticity with random phases, energy around wave number 6 and mean square velocity 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, dtype=torch.float64, generator=generator)
    k = square.sqrt().clamp(min=1)
    w = torch.fft.rfft2(noise) * kept * square / (k * (1 + (k / 6) ** 4)).sqrt()
    speed = torch.fft.irfft2(w / k, size).square().mean().sqrt()
    return torch.fft.irfft2(w / speed, size)


def _wave_numbers(num_points: int, length: float) -> Tensor:
    spacing = length / (2 * math.pi * num_points)
    return torch.fft.rfftfreq(num_points, spacing, dtype=torch.float64)


def _kept(k: Tensor) -> Tensor:
    """Return which waves the two-thirds rule keeps, to which products do not alias."""
    return k.abs() < 2 / 3 * k.abs().max()


def _divided(end_time: float, num_times: int, time_step: float) -> tuple[int, float]:
    """Return the number of steps between two times, and their length."""
    interval = end_time / max(1, num_times - 1)
    if not interval / time_step <= MOST_STEPS:
        raise ValueError(
            f"time_step must be at least end_time / (num_times - 1) / {MOST_STEPS}, got {time_step} "
            f"for end_time {end_time} and num_times {num_times}"
        )
    steps = math.ceil(interval / time_step * (1 - 1e-12))
    return steps, interval / steps


def _times(end_time: float, num_times: int) -> Tensor:
    return torch.linspace(0, end_time, num_times, dtype=torch.float64)


def _given(initial: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if initial is None:
        return None
    if tuple(initial.shape) != shape:
        raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}")
    return initial.detach().cpu().double()


def _check_grid(num_points: int, num_times: int) -> None:
    check_positive(num_times=num_times)
    if num_points < 8:
        raise ValueError(f"num_points must be at least 8, got {num_points}")


def _check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def _origin(start: Tensor | None, seed: int) -> dict[str, Any]:
    """Return the record of an initial field: its seed, or a digest of the field itself."""
    if start is None:
        return {"seed": seed}
    return {"initial": hashlib.sha256(start.contiguous().numpy().tobytes()).hexdigest()}


def _kept_under(
    root: str | os.PathLike[str] | None,
    name: str,
    settings: dict[str, Any],
    make: Callable[[int], Sample],
) -> Sample:
    return make(0) if root is None else SampleCache(root, name, settings, make)[0]
