"""Exponential time integrator for equations with a stiff linear part."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Rate = Callable[[Tensor], Tensor]
CONTOUR_POINTS = 32


def etdrk4(linear: Tensor, nonlinear: Rate, step: float) -> Rate:
    """Return a step of the fourth-order exponential integrator for `dv/dt = linear * v + nonlinear(v)`.

    The linear part is integrated exactly, so that diffusion and fourth derivatives do not limit the
    step. The coefficients are means over circles in the complex plane, because their formulas suffer
    from cancellation if `step * linear` is near 0.

    Args:
        linear: Real factors of the linear part, float64, broadcastable to the state.
        nonlinear: Rate of change by the nonlinear part.
        step: Length of the step in time.

    Source: Kassam and Trefethen 2005, SIAM J. Sci. Comput. 26, 1214, eq. (26) and section 2.

    Examples:
        >>> decay = etdrk4(torch.tensor([-1000.0]).double(), torch.zeros_like, 0.1)
        >>> decay(torch.ones(1, dtype=torch.float64)).item() < 1e-40
        True
    """
    h = step * linear
    angles = math.pi * (torch.arange(CONTOUR_POINTS, dtype=h.dtype, device=h.device) + 0.5)
    z = h[..., None] + torch.exp(1j * angles / CONTOUR_POINTS)  # upper half: the mean is real
    e = torch.exp(z)

    def mean(values: Tensor) -> Tensor:
        return step * values.real.mean(-1)

    whole, half = torch.exp(h), torch.exp(h / 2)
    to_half = mean((torch.exp(z / 2) - 1) / z)
    first = mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3)
    middle = 2 * mean((2 + z + e * (z - 2)) / z**3)
    last = mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3)

    def advance(v: Tensor) -> Tensor:
        rate = nonlinear(v)
        a = half * v + to_half * rate
        rate_a = nonlinear(a)
        b = half * v + to_half * rate_a
        rate_b = nonlinear(b)
        c = half * a + to_half * (2 * rate_b - rate)
        return whole * v + first * rate + middle * (rate_a + rate_b) + last * nonlinear(c)

    return advance


def trajectory(advance: Rate, v: Tensor, num_times: int, steps_between: int) -> Tensor:
    """Return the states at `num_times` times, starting with `v`, along a new first axis."""
    states = [v]
    for _ in range(num_times - 1):
        for _ in range(steps_between):
            v = advance(v)
        states.append(v)
    return torch.stack(states)
