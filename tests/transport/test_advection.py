"""Advection against exact solutions, its order of accuracy, conservation, and refused input."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neurenix_ms.conservation import total_mass
from neurenix_ms.execution import TiledModel
from neurenix_ms.transport import Advection

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
SCHEMES = pytest.mark.parametrize("scheme", ["semi_lagrangian", "flux"])
BOUNDARIES = pytest.mark.parametrize("boundary", ["periodic", "wall"])
DOUBLE = torch.float64


def random_flow(dims: int, n: int, seed: int = 0, dtype=DOUBLE) -> tuple[Tensor, Tensor]:
    """A density and a velocity of less than one cell per step, on unequal axes."""
    generator = torch.Generator().manual_seed(seed)
    size = (n, n + 2, n + 1)[:dims]
    density = torch.rand(2, 1, *size, generator=generator, dtype=dtype)
    velocity = torch.rand(2, dims, *size, generator=generator, dtype=dtype)
    return density, (2 * velocity - 1) / dims


def between_walls(edges: list[Tensor], time: float) -> tuple[Tensor, Tensor, Tensor]:
    """A density at times 0 and `time`, as cell averages, and its velocity at the centers of cells.

    The velocity along every axis is `+-sin(pi x)`, so that `tan(pi x / 2)` grows or shrinks by
    `exp(pi t)`. The density is a product of functions of one coordinate each.
    """
    start: list[Any] = []
    end: list[Any] = []
    velocities: list[Any] = []
    for axis, edge in enumerate(edges):
        sign = (-1) ** axis
        origin = (
            2
            / math.pi
            * torch.atan(torch.tan(math.pi * edge / 2) * math.exp(-sign * math.pi * time))
        )
        origin[-1] = 1.0
        for x, densities in ((edge, start), (origin, end)):
            mass = x + 0.5 * torch.sin(2 * math.pi * x) / (2 * math.pi)
            densities.append(mass.diff() / edge.diff())
        velocities.append(sign * torch.sin(math.pi * (edge[1:] + edge[:-1]) / 2))
    density = [math.prod(torch.meshgrid(*d, indexing="ij")) for d in (start, end)]
    velocity = torch.stack(torch.meshgrid(*velocities, indexing="ij"))
    return density[0][None, None], density[1][None, None], velocity[None]


def even(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=DOUBLE)


def stretched(n: int) -> Tensor:
    return even(n) - 0.3 * torch.sin(2 * math.pi * even(n)) / (2 * math.pi)


def error_between_walls(scheme: str, n: int, dims: int, edges=even, steps: int = 1) -> float:
    axes = [edges(n + 2 * axis) for axis in range(dims)]
    time = 0.2
    density, truth, velocity = between_walls(axes, time)
    cells = torch.stack(torch.meshgrid(*(a.diff() for a in axes), indexing="ij"))
    advect = Advection(
        dims, duration=time / steps, scheme=scheme, boundary="wall", substeps=3 * n // steps
    )
    for _ in range(steps):
        density = advect(density, velocity, cell_sizes=cells)
    return float((density - truth).abs().max())


@DIMS
@SCHEMES
@BOUNDARIES
def test_without_a_flow_nothing_changes(dims, scheme, boundary):
    density, velocity = random_flow(dims, 4)
    advect = Advection(dims, scheme=scheme, boundary=boundary, spacing=0.5, duration=3.0)
    torch.testing.assert_close(advect(density, 0 * velocity), density)


@DIMS
@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_shift_by_whole_cells_is_exact(dims, points):
    density, velocity = random_flow(dims, 5)
    flow = torch.tensor([2.0, -1.0, 4.0][:dims], dtype=DOUBLE).reshape(-1, *(1,) * dims)
    spacing = [0.5, 2.0, 1.0][:dims]
    speed = flow * torch.tensor(spacing, dtype=DOUBLE).reshape(flow.shape) / 1.5
    advect = Advection(dims, duration=1.5, spacing=spacing, points=points)
    moved = advect(density, speed.expand_as(velocity))
    expected = density.roll((2, -1, 4)[:dims], tuple(range(2, 2 + dims)))
    if points > 1:
        torch.testing.assert_close(moved, expected)
    else:  # the value at the center is not the average
        assert 0 < (moved - expected).abs().max() < 0.6


@SCHEMES
def test_the_velocity_changes_linearly_from_start_to_end(scheme):
    axis = 2 * math.pi * torch.arange(32, dtype=DOUBLE) / 32
    density = (2 + torch.sin(axis))[None, None]
    velocity = torch.full_like(density, 1.0)
    advect = Advection(1, scheme=scheme, substeps=8)
    moved = advect(density, velocity, 5 * velocity)
    torch.testing.assert_close(moved, density.roll(3, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("scheme", "dims", "n", "edges", "least"),
    [
        ("semi_lagrangian", 1, 32, even, 3.2),
        ("semi_lagrangian", 2, 12, even, 3.0),
        ("semi_lagrangian", 1, 64, stretched, 1.9),  # a center is not the middle of the coordinate
        ("flux", 1, 32, even, 4.5),
        ("flux", 2, 12, even, 3.5),
        ("flux", 1, 64, stretched, 1.9),
    ],
)
def test_the_error_falls_with_the_order_of_the_scheme(scheme, dims, n, edges, least):
    coarse, fine = (error_between_walls(scheme, m, dims, edges) for m in (n, 2 * n))
    order = math.log2(coarse / fine)
    assert order > least, f"order {order:.2f}"


@SCHEMES
def test_in_three_dimensions_the_solution_is_right(scheme):
    density, truth, _ = between_walls([even(n) for n in (12, 14, 16)], 0.2)
    error = error_between_walls(scheme, 12, 3)
    assert error < 0.06 * float((density - truth).abs().max())


def test_more_points_and_substeps_reduce_the_error():
    few, more = (
        Advection(1, duration=0.4, spacing=1 / 32, boundary="wall", points=p, substeps=s)
        for p, s in ((1, 1), (3, 8))
    )
    density, truth, velocity = between_walls([even(32)], 0.4)
    errors = [float((step(density, velocity) - truth).abs().max()) for step in (few, more)]
    assert errors[1] < 0.1 * errors[0]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 99),
    st.sampled_from(["semi_lagrangian", "flux"]),
    st.sampled_from(["periodic", "wall"]),
)
def test_mass_is_conserved_and_nothing_is_negative(dims, n, seed, scheme, boundary):
    density, velocity = random_flow(dims, n, seed)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(density.shape[2:], generator=generator) > 0.2
    area = 0.5 + torch.rand(dims, *density.shape[2:], generator=generator, dtype=DOUBLE)
    advect = Advection(dims, duration=0.5, scheme=scheme, boundary=boundary)
    density = density.where(mask, 0)
    after = advect(density, velocity, velocity.roll(1, 2), mask, area)
    before, later = (total_mass(x, mask, area.prod(0)) for x in (density, after))
    assert (after >= 0).all()
    assert (after[..., ~mask] == 0).all()
    if scheme == "flux" or (later > 0).all():  # nothing is left where all flows into land
        torch.testing.assert_close(later, before, rtol=1e-10, atol=1e-12)


def test_in_flux_form_no_mass_crosses_land():
    density, velocity = random_flow(2, 8)
    mask = torch.ones(density.shape[2:])
    mask[3], mask[7] = 0, 0  # two basins
    density = density * mask
    after = Advection(2, scheme="flux", substeps=8)(density, 4 * velocity, mask=mask)
    assert not torch.allclose(after, density)
    torch.testing.assert_close(after[:, :, :3].sum((2, 3)), density[:, :, :3].sum((2, 3)))
    torch.testing.assert_close(after[:, :, 4:7].sum((2, 3)), density[:, :, 4:7].sum((2, 3)))


@SCHEMES
@pytest.mark.parametrize(("dims", "n"), [(1, 6), (2, 3)])
def test_gradients_are_right(scheme, dims, n):
    density, velocity = random_flow(dims, n, seed=1)
    advect = Advection(dims, scheme=scheme, substeps=2, points=2, boundary="wall")
    inputs = (density[:1] + 0.5, velocity[:1])
    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(advect, inputs)


@SCHEMES
def test_it_is_compiled_exported_copied_and_rebuilt(scheme):
    density, velocity = random_flow(1, 9, dtype=torch.float32)
    advect = Advection(1, scheme=scheme, substeps=2)
    expected = advect(density, velocity)
    compiled = torch.compile(advect, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(density, velocity), expected)
    exported = torch.export.export(advect, (density, velocity)).module()
    torch.testing.assert_close(exported(density, velocity), expected)
    rebuilt = Advection(**advect.config)
    for other in (copy.deepcopy(advect), pickle.loads(pickle.dumps(advect)), rebuilt):
        assert torch.equal(other(density, velocity), expected)


def test_a_sample_does_not_depend_on_its_batch():
    density, velocity = random_flow(2, 7)
    advect = Advection(2)
    torch.testing.assert_close(advect(density[:1], velocity[:1]), advect(density, velocity)[:1])


class Step(nn.Module):
    """A step of one input: the density and the velocity as channels."""

    def __init__(self, advection: Advection) -> None:
        super().__init__()
        self.advection = advection

    def forward(self, x: Tensor) -> Tensor:
        return self.advection(x[:, :1], x[:, 1:])


@SCHEMES
def test_tiles_are_refused(scheme):
    density, velocity = random_flow(1, 64, dtype=torch.float32)
    advect = Step(Advection(1, scheme=scheme, boundary="wall", substeps=1))
    x = torch.cat([density, velocity], dim=1)
    with pytest.raises(ValueError, match="advection"):
        TiledModel(advect, 16, spatial_dims=1)(x)


@SCHEMES
def test_nan_stays_where_the_flow_takes_it(scheme):
    density, velocity = random_flow(1, 16)
    velocity[0, 0, 5] = math.nan
    after = Advection(1, scheme=scheme, substeps=1)(density, 0.2 * velocity)
    assert after[0].isnan().any()
    assert not after[1].isnan().any()


def test_bad_input_is_refused():
    density, velocity = random_flow(2, 4)
    advect = Advection(2, scheme="flux", substeps=2)
    with pytest.raises(ValueError, match=r"got 1.5: use substeps of at least 4"):
        advect(density, torch.full_like(velocity, 1.5))
    with pytest.raises(
        ValueError, match=r"velocity must have shape \(2, 2, 4, 6\), got \(2, 1, 4, 6\)"
    ):
        advect(density, velocity[:, :1])
    with pytest.raises(ValueError, match=r"cell_sizes must have shape \(2, 4, 6\), got \(4, 6\)"):
        advect(density, velocity, cell_sizes=density[0, 0])
    with pytest.raises(ValueError, match=r"mask must be broadcastable .*, got \(4,\)"):
        advect(density, velocity, mask=torch.ones(4))
    with pytest.raises(ValueError, match="spacing must be one positive number or 2"):
        Advection(2, spacing=[1.0])
    with pytest.raises(ValueError, match="spacing must be one positive number or 2"):
        Advection(2, spacing=-1.0)
    with pytest.raises(ValueError, match="scheme must be one of"):
        Advection(2, scheme="upwind")
    with pytest.raises(ValueError, match="duration must be above 0"):
        Advection(2, duration=0.0)
    with pytest.raises(ValueError, match="points must be"):
        Advection(2, points=0)
