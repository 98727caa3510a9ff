"""Advection, updates by fluxes and conserved mass compared with the plain way."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import plain_transport
from benchmarks.paired import assert_equal, measure_forward, measure_step, only_when_timing
from neurenix_ms.transport import Advection, FluxConservation, MassConserving

SUBSTEPS = 2
SAMPLED = "torch.grid_sample"  # as models of weather and radar do; another result
# axes, edge
SIZES = {
    "FluxConservation": [(1, 4096), (2, 64), (2, 256), (3, 32)],
    "Advection-flux": [(1, 4096), (2, 64), (2, 256), (3, 32)],
    "Advection-semi_lagrangian": [(2, 64), (2, 256)],
    "MassConserving": [(2, 64), (2, 256)],
}
CASES = [
    (name, dims, size, variant)
    for name, sizes in SIZES.items()
    for dims, size in sizes
    for variant in (SAMPLED if name.endswith("lagrangian") else "plain", "ours")
]
Ways = dict[str, Callable[[Any], Tensor]]


def ways(name: str, dims: int) -> Ways:
    """Return the ways to one result, functions of the concatenated density and fields."""
    if name == "MassConserving":
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        nn.init.ones_(network[2].bias)
        return {"plain": plain_transport.MassConserving(network), "ours": MassConserving(network)}
    if name == "FluxConservation":
        return of_parts(plain=plain_transport.updated, ours=FluxConservation(dims))
    if name == "Advection-flux":
        theirs = partial(plain_transport.advected, substeps=SUBSTEPS)
        return of_parts(plain=theirs, ours=Advection(dims, scheme="flux", substeps=SUBSTEPS))
    theirs = partial(plain_transport.sampled, substeps=SUBSTEPS)
    return of_parts(**{SAMPLED: theirs}, ours=Advection(dims, substeps=SUBSTEPS))


def of_parts(**functions: Callable[[Tensor, Tensor], Tensor]) -> Ways:
    """Return functions of one tensor, split into the density and the other channels."""

    def of_one(function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x[:, :1], x[:, 1:])

    return {name: partial(of_one, function) for name, function in functions.items()}


def fields(name: str, dims: int, size: int) -> Tensor:
    """Return a density with a flow, or with fluxes that empty some cells."""
    channels = 2 if name == "MassConserving" else dims
    moving = torch.randn(2, channels, *(size,) * dims)
    if name.startswith("Advection"):
        moving = 0.6 * moving / moving.abs().amax() / dims
    return torch.cat([torch.rand(2, 1, *(size,) * dims), moving], dim=1)


@pytest.mark.benchmark(group="transport/forward")
@pytest.mark.parametrize(("name", "dims", "size", "variant"), CASES)
def test_transport_forward(name, dims, size, variant, measure, request):
    if size == 256:
        only_when_timing(request)
    x = fields(name, dims, size)
    measure_forward(measure, ways(name, dims), variant, x, same=variant != SAMPLED)


@pytest.mark.benchmark(group="transport/train-step")
@pytest.mark.parametrize(
    ("name", "dims", "size", "variant"), [case for case in CASES if "lagrangian" not in case[0]]
)
def test_transport_train_step(name, dims, size, variant, measure, request):
    if size == 256:
        only_when_timing(request)
    x = fields(name, dims, size).requires_grad_()
    found: Mapping[str, Callable[[Tensor], Tensor]] = ways(name, dims)
    assert_equal(found["ours"](x), found["plain"](x))

    def step(way: Callable[[Tensor], Tensor]) -> None:
        way(x).square().mean().backward()
        x.grad = None

    steps = {key: partial(step, way) for key, way in found.items()}
    measure_step(measure, steps, variant, x)
