"""Errors and network calls of single, coupled and adaptive forecasts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms.recipes.adaptive.settings import Parts
from neurenix_ms.timestepping import AdaptiveTimeStepper, HierarchicalTimeStepper, TimeStepper
from neurenix_ms.timestepping.windows import nonzero

Forecast = Callable[[Tensor, int], Tensor]
Result = dict[str, Any]
KINDS = ("single", "coupled", "change", "adaptive")
LEEWAY = 1.05  # errors within 5 % count as the same
TOLERANCES = (0.01, 0.03, 1e6)  # 1e6: always the longest stride
INTERPOLATIONS = (2e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
CHANGES = tuple(10.0**i for i in range(-5, 1))  # mean squared, of the published rule


@dataclass(frozen=True)
class Way:
    """Forecast with the settings that a table shows.

    Args:
        kind: "single", "coupled", "change" or "adaptive".
        label: Strides, or both tolerances and the longest stride.
        forecast: Function of initial states and a number of steps.
        modules: The networks that it calls: steppers, and that of the errors last.
    """

    kind: str
    label: Sequence[float]
    forecast: Forecast
    modules: list[nn.Module]


def fixed_ways(hierarchy: HierarchicalTimeStepper, unit: float = 1.0) -> list[Way]:
    """Return the forecasts with every set of consecutive strides, and those by the published rule.

    Args:
        hierarchy: The steppers.
        unit: Unit of the mean squared changes that the rule compares.
    """
    sizes = hierarchy.step_sizes
    sets = [sizes[i:j] for i in range(len(sizes)) for j in range(i + 1, len(sizes) + 1)]
    modules = list(hierarchy.steppers)
    ways = [
        Way("single" if len(s) == 1 else "coupled", s, hierarchy.only(s).forecast, modules)
        for s in sets
    ]
    changes = [
        Way("change", [change], by_change(hierarchy, unit * change), modules) for change in CHANGES
    ]
    return ways + changes


def adaptive_ways(model: AdaptiveTimeStepper) -> list[Way]:
    """Return the adaptive forecasts of all tolerances."""
    modules = [*model.steppers, model.errors]
    return [
        Way(
            "adaptive",
            [*pair, max(model.step_sizes)],
            with_tolerances(model, *pair).forecast,
            modules,
        )
        for pair in product(TOLERANCES, INTERPOLATIONS)
    ]


def with_tolerances(
    model: AdaptiveTimeStepper, tolerance: float, interpolation: float
) -> AdaptiveTimeStepper:
    """Return the same networks with other tolerances."""
    return AdaptiveTimeStepper(model.fine_first(), model.errors, tolerance, interpolation)


def by_change(hierarchy: HierarchicalTimeStepper, tolerance: float) -> Forecast:
    """Return a forecast by the published rule of AHiTS.

    All trajectories of a batch take the largest stride over which the mean squared change of the batch
    is below the tolerance, or else the shortest. Every stride that is tried is a call.
    """
    steppers = hierarchy.coarse_first()

    def forecast(x0: Tensor, num_steps: int) -> Tensor:
        x, t = x0, 0
        parts = []
        while t < num_steps:
            for stepper in steppers:
                y = stepper(x)
                if (y - x).square().mean() < tolerance:
                    break
            stride = stepper.step_size
            share = torch.arange(1, stride + 1).view(1, -1, *(1,) * (x.ndim - 1)) / stride
            parts.append(torch.lerp(x[:, None], y[:, None], share))
            x, t = y, t + stride
        return torch.cat(parts, dim=1)[:, :num_steps]

    return forecast


@contextmanager
def counted(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Count the states that each module is called with, while the context is open."""
    counts = [0] * len(modules)

    def hook(i: int) -> Callable[..., None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counts[i] += len(inputs[0])

        return count

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measured(way: Way, trajectories: Tensor, variance: Tensor) -> Result:
    """Return the mean squared error by the variance, and the calls of steppers per trajectory.

    "cost" adds the predictions of errors to the calls, each by its ratio of multiplications.

    Args:
        way: The forecast.
        trajectories: True states, of which the first row is the start.
        variance: Variance of every channel.
    """
    truth = trajectories[:, 1:]
    modules = way.modules
    with counted(modules) as counts:
        states = way.forecast(trajectories[:, 0], truth.shape[1])
    error = ((states - truth).square() / variance).mean().item()
    numbers = [sum(p.numel() for p in module.parameters()) for module in modules]
    costs = [count * n / numbers[0] for count, n in zip(counts, numbers, strict=True)]
    calls = [count for count, module in zip(counts, modules, strict=True) if is_stepper(module)]
    return {
        "error": error if math.isfinite(error) else math.inf,
        "calls": sum(calls) / len(truth),
        "cost": sum(costs) / len(truth),
    }


def is_stepper(module: nn.Module) -> bool:
    """Return whether a module is a stepper, not the network of the errors."""
    return isinstance(module, TimeStepper)


def variance_of(data: Parts) -> Tensor:
    """Return the variance of every channel in the training trajectories; 1 where it is constant."""
    return nonzero(data["train"].flatten(0, 1).var(dim=0))


def longest(hierarchy: HierarchicalTimeStepper, data: Parts) -> int:
    """Return the longest stride of the set that is most accurate on the validation trajectories."""
    variance = variance_of(data)
    sets = [way for way in fixed_ways(hierarchy) if way.kind in ("single", "coupled")]
    best = min(sets, key=lambda way: measured(way, data["validation"], variance)["error"])
    return int(max(best.label))


def compared(
    hierarchy: HierarchicalTimeStepper,
    models: Sequence[AdaptiveTimeStepper],
    data: Parts,
    unit: float = 1.0,
) -> Result:
    """Measure all forecasts on validation trajectories, and those worth it on test trajectories.

    Args:
        hierarchy: The steppers.
        models: Adaptive forecasts by them.
        data: All trajectories.
        unit: Unit of the mean squared changes that the published rule compares.

    Returns:
        "ways": errors and costs of all forecasts, on test trajectories if no other of the kind is more
        accurate at a lower cost on the validation; "chosen": see `chosen`.
    """
    variance = variance_of(data)
    every = fixed_ways(hierarchy, unit)
    for model in models:
        every += adaptive_ways(model)
    rows: list[Result] = []
    for way in every:
        scores = measured(way, data["validation"], variance)
        rows.append({"kind": way.kind, "label": way.label, "validation": scores})
    for i in front(rows):
        rows[i]["test"] = measured(every[i], data["test"], variance)
    return {"ways": rows, "chosen": chosen(rows)}


def front(rows: list[Result]) -> list[int]:
    """Return the rows than which no other of their kind is both cheaper and more accurate."""
    kept = []
    for kind in KINDS:
        some = [i for i, row in enumerate(rows) if row["kind"] == kind]
        best = math.inf
        for i in sorted(some, key=lambda i: (_cost(rows[i]), _error(rows[i]))):
            if _error(rows[i]) < best:
                best = _error(rows[i])
                kept.append(i)
    return kept


def chosen(rows: list[Result]) -> dict[str, int]:
    """Choose the rows of the table by their validation errors.

    Returns:
        The index of the most accurate single and coupled forecasts, and of the cheapest of every kind
        whose error is at most 5 % above the smallest one of any single or coupled forecast; of the most
        accurate one if none is.
    """
    of = {kind: [i for i, row in enumerate(rows) if row["kind"] == kind] for kind in KINDS}
    fixed = [*of["single"], *of["coupled"]]

    def error(i: int) -> float:
        return _error(rows[i])

    bound = LEEWAY * min(map(error, fixed))
    result = {f"best {kind}": min(of[kind], key=error) for kind in ("single", "coupled")}
    groups = {"cheapest fixed": fixed, "change": of["change"], "adaptive": of["adaptive"]}
    for name, some in groups.items():
        accurate = [i for i in some if error(i) <= bound]
        cheapest = min(accurate, key=lambda i: (_cost(rows[i]), error(i)), default=None)
        result[name] = min(some, key=error) if cheapest is None else cheapest
    return result


def _error(row: Result) -> float:
    value: float = row["validation"]["error"]
    return value


def _cost(row: Result) -> float:
    value: float = row["validation"]["cost"]
    return value


@torch.no_grad()
def example(model: AdaptiveTimeStepper, data: Parts) -> Result:
    """Return one test trajectory, its adaptive forecast and the times that it computes."""
    truth = data["test"][:1]
    states, computed = model.forecast(truth[:, 0], truth.shape[1] - 1, return_computed=True)
    return {
        "true": _rounded(truth[0, 1:]),
        "forecast": _rounded(states[0]),
        "computed": (computed[0].nonzero()[:, 0] + 1).tolist(),
    }


def _rounded(values: Tensor) -> list[list[float]]:
    """Return values with four digits, whatever their unit."""
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
