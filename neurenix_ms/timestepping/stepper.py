"""Time-steppers that advance a state by one stride: a network, or a classical integrator."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured, Described
from neurenix_ms._core.dims import check_positive
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.timestepping.forecasting import QueryTimes, forecast


class TimeStepper(Configured, nn.Module):
    """Advance a state by one stride, as the state plus the change that a network predicts.

    A network learns the change over a long time as easily as over a short one, so a stepper does not
    need the small steps of an integrator. A single stepper either skips the dynamics within its stride
    or accumulates its error over many strides; `HierarchicalTimeStepper` combines several.

    Args:
        network: Network from states to changes of the same shape: an `MLP` for vectors, a `UNet` for
            fields.
        step_size: The stride, in steps of dt.

    Shape:
        `(B, *D)` -> the same

    Raises:
        ValueError: If the stride is below 1, or the network returns another shape.

    Source: Liu, Kutz, Brunton 2020, "Hierarchical Deep Learning of Multiscale Differential Equation
    Time-Steppers", equation 5.

    Examples:
        >>> from neurenix_ms.layers.mlp import MLP
        >>> stepper = TimeStepper(MLP(2, 2, [32]), step_size=4)
        >>> with torch.no_grad():
        ...     stepper.forecast(torch.zeros(3, 2), 10).shape
        torch.Size([3, 10, 2])
    """

    @checked
    def __init__(self, network: nn.Module, step_size: int) -> None:
        super().__init__()
        check_positive(step_size=step_size)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        change = call_intact(self.network, x)
        if change.shape != x.shape:
            raise ValueError(
                f"the network must return a change of the state's shape {tuple(x.shape)}, "
                f"got {tuple(change.shape)}"
            )
        return x + change

    @checked
    def forecast(
        self,
        x0: Tensor,
        num_steps: int,
        *,
        times: QueryTimes | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Return the states at the times dt, 2 dt, ..., linearly interpolated between strides.

        Args:
            x0: States at time 0, `(B, *D)`.
            num_steps: Number of times.
            times: Increasing times in steps of dt, from 0 to `num_steps`, in place of the grid.
            chunk_size: See `HierarchicalTimeStepper.forecast`.
        """
        return forecast([self], x0, num_steps, times=times, chunk_size=chunk_size)[0]


class IntegratorStepper(Described, nn.Module):
    """Advance a state by one step of a classical integrator.

    Use it as the finest level of a hybrid forecast if the right-hand side is known: coarse networks
    compute states far apart, and the integrator those in between, for all intervals at once.

    Args:
        rhs: The time derivative of states `(B, *D)`, of the same shape; it does not depend on time.
        dt: The unit of the strides.
        step_size: The stride; one step of the integrator has the size `step_size * dt`.
        method: "rk4", the classical Runge-Kutta method, or any method of torchdiffeq.

    Shape:
        `(B, *D)` -> the same

    Raises:
        ValueError: If the stride is below 1, or dt is not positive.
        ImportError: If `method` is not "rk4" and torchdiffeq is missing.

    Examples:
        >>> decay = IntegratorStepper(lambda x: -x, dt=0.1, step_size=2)
        >>> round(decay(torch.ones(1, 1)).item(), 4)  # exp(-0.2)
        0.8187
    """

    @checked
    def __init__(
        self,
        rhs: Callable[[Tensor], Tensor],
        dt: float,
        step_size: int,
        method: str = "rk4",
    ) -> None:
        super().__init__()
        check_positive(step_size=step_size)
        if not dt > 0:
            raise ValueError(f"dt must be positive, got {dt}")
        self.rhs = rhs
        self.dt = dt
        self.step_size = step_size
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        h = self.dt * self.step_size
        if self.method != "rk4":
            return self._by_torchdiffeq(x, h)
        # the later calls get temporaries, which they may overwrite
        k1 = call_intact(self.rhs, x)
        k2 = self.rhs(x + h / 2 * k1)
        k3 = self.rhs(x + h / 2 * k2)
        k4 = self.rhs(x + h * k3)
        return x + h / 6 * (k1 + 2 * (k2 + k3) + k4)

    def _by_torchdiffeq(self, x: Tensor, h: float) -> Tensor:
        try:
            from torchdiffeq import odeint
        except ImportError as error:
            raise ImportError(
                f"method {self.method!r} needs torchdiffeq: pip install 'neurenix_ms[ode]'"
            ) from error
        ends = torch.tensor([0.0, h], dtype=x.dtype, device=x.device)
        return odeint(lambda t, y: call_intact(self.rhs, y), x, ends, method=self.method)[-1]
