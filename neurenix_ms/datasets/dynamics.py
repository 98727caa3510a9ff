"""Trajectories of small differential equations, solved to ten digits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive, choose

TOLERANCE = 1e-10
MAX_STEP = 0.25  # with longer steps the solver's interpolant is accurate to 6 digits only
TIME_TO_THE_ATTRACTOR = 20.0


@dataclass(frozen=True)
class System:
    """Autonomous ordinary differential equation with the range of its initial states.

    The systems of the papers are in `SYSTEMS`. Create one for another equation, and pass its `rhs` to an
    `IntegratorStepper` if a forecast should use the equation.

    Args:
        derivative: Function from the components of the state to those of its derivative, in plain
            arithmetic, so that it works for numbers, arrays and tensors.
        low: Smallest initial value of every component.
        high: Largest initial value of every component.
        flow: Exact solution, a function of the components and a time, if it is known.
        polar: Whether initial values are a radius and an angle.
        settles: Whether states start on the attractor rather than in the box.

    Examples:
        >>> spring = System(lambda x, v: (v, -x), low=(-1.0, -1.0), high=(1.0, 1.0))
        >>> spring.rhs(torch.tensor([[1.0, 0.5]]))
        tensor([[ 0.5000, -1.0000]])
    """

    derivative: Callable[..., tuple[Tensor, ...]]
    low: tuple[float, ...]
    high: tuple[float, ...]
    flow: Callable[..., tuple[Tensor, ...]] | None = None
    polar: bool = False
    settles: bool = False

    def rhs(self, x: Tensor) -> Tensor:
        """Return the time derivative of states `(..., D)`, for `IntegratorStepper`."""
        return torch.stack(self.derivative(*x.unbind(-1)), dim=-1)


def _rotated(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    return x * torch.cos(t) + y * torch.sin(t), y * torch.cos(t) - x * torch.sin(t)


def _cubic(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return -0.1 * x**3 + 2 * y**3, -2 * x**3 - 0.1 * y**3


def _hopf(mu: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    square = x * x + y * y
    return 0 * mu, mu * x + y - x * square, mu * y - x - y * square


def _fitzhugh_nagumo(v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return v - v**3 / 3 - w + 0.5, 0.08 * (v + 0.7 - 0.8 * w)


def _lorenz(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z


SYSTEMS: dict[str, System] = {
    "harmonic": System(lambda x, y: (y, -x), (0, -torch.pi), (2, torch.pi), _rotated, polar=True),
    "hyperbolic": System(lambda x, y: (-0.05 * x, x * x - y), (-1, -1), (1, 1)),
    "cubic": System(_cubic, (-1, -1), (1, 1)),
    "van_der_pol": System(lambda x, y: (y, 2 * (1 - x * x) * y - x), (-2, -4), (2, 4)),
    "hopf": System(_hopf, (-0.2, -1, -1), (0.6, 2, 1)),
    "fitzhugh_nagumo": System(_fitzhugh_nagumo, (-2, -1), (2, 2)),
    "lorenz": System(_lorenz, (-10, -10, 15), (10, 10, 35), settles=True),
}


@checked
def initial_states(system: str, num_samples: int, *, seed: int = 0) -> Tensor:
    """Draw random initial states of a system, in double precision.

    Pass them to `simulate`. Use different seeds for training, validation and test, so that they share
    no states.

    Args:
        system: A key of `SYSTEMS`.
        num_samples: Number of states.
        seed: Seed of the random numbers.

    Shape:
        `(num_samples, D)`

    Raises:
        ValueError: If the system is unknown or the number is below 1.

    Examples:
        >>> initial_states("hopf", 5).shape
        torch.Size([5, 3])
    """
    equation = choose(SYSTEMS, system, "system")
    check_positive(num_samples=num_samples)
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([equation.low, equation.high], dtype=torch.float64)
    u = torch.rand(num_samples, len(low), generator=generator, dtype=torch.float64)
    x = low + (high - low) * u
    if equation.polar:
        radius, angle = x.unbind(-1)
        return torch.stack([radius * angle.sin(), radius * angle.cos()], dim=-1)
    if equation.settles:
        return simulate(system, x, TIME_TO_THE_ATTRACTOR, 1)[:, -1]
    return x


@checked
def simulate(
    system: str, initial_states: Tensor, dt: float, num_steps: int, *, progress: bool = False
) -> Tensor:
    """Compute trajectories to a tolerance of 1e-10, far below the errors of networks.

    At its default tolerances the same solver has larger errors than published networks: a mean square
    of 8.7e-3 for the Van der Pol oscillator over 5120 steps.

    Args:
        system: A key of `SYSTEMS`.
        initial_states: States at time 0; the result has their dtype and device.
        dt: Time between two rows.
        num_steps: Number of rows after the first.
        progress: Show a progress bar.

    Shape:
        `(N, D)` -> `(N, num_steps + 1, D)`, row 0 being the initial states

    Raises:
        ValueError: If the system is unknown, the states are not `(N, D)` or not finite, dt is not
            positive, the number of steps is below 1, or the solver fails.
        ImportError: If scipy is missing.

    Examples:
        >>> start = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        >>> quarter = simulate("harmonic", start, torch.pi / 2, 1)[0, 1]
        >>> quarter.allclose(torch.tensor([1.0, 0.0], dtype=torch.float64))
        True
    """
    equation = choose(SYSTEMS, system, "system")
    check_positive(num_steps=num_steps)
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    dims = len(equation.low)
    if initial_states.ndim != 2 or initial_states.shape[1] != dims:
        raise ValueError(
            f"initial states of {system!r} must be (N, {dims}), got {tuple(initial_states.shape)}"
        )
    if not initial_states.isfinite().all():
        raise ValueError("initial states must be finite, got NaN or inf")
    times = dt * torch.arange(num_steps + 1, dtype=torch.float64)
    starts = initial_states.detach().cpu().double()
    if equation.flow is not None:
        parts = equation.flow(*starts.unsqueeze(1).unbind(-1), times)
        trajectories = torch.stack(parts, dim=-1)
    else:
        from tqdm.auto import tqdm

        bar = tqdm(starts, desc=f"solving {system}", disable=not progress, leave=False)
        trajectories = torch.stack([_solved(equation, start, times) for start in bar])
    return trajectories.to(initial_states)


def _solved(equation: System, start: Tensor, times: Tensor) -> Tensor:
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise ImportError("simulate needs scipy: pip install 'neurenix_ms[ode]'") from error
    solution = solve_ivp(
        lambda t, y: equation.derivative(*y.tolist()),
        (0, times[-1].item()),
        start.numpy(),
        method="DOP853",
        t_eval=times.numpy(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
        max_step=MAX_STEP,
    )
    if not solution.success:
        raise ValueError(f"the solver failed from {start.tolist()}: {solution.message}")
    return torch.from_numpy(solution.y.T.copy())
