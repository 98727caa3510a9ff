"""The lattice-Boltzmann wake: equilibrium, conservation, no slip, vortices, and its decomposition."""

import pytest
import torch

from neurenix_ms.datasets.wake import OPPOSITE, VELOCITIES, WEIGHTS, _Flow, cylinder_wake, pod

SMALL = {"size": (40, 24), "diameter": 5.0, "num_times": 4, "interval": 3, "warm_up": 2}


def test_the_velocities_form_the_lattice():
    v = VELOCITIES.double()
    assert torch.equal(v[OPPOSITE], -v)
    assert WEIGHTS.sum().item() == pytest.approx(1)
    second = torch.einsum("i,ia,ib->ab", WEIGHTS, v, v)
    torch.testing.assert_close(second, torch.eye(2, dtype=torch.float64) / 3)


def test_the_equilibrium_has_its_density_and_velocity():
    flow = _Flow((20, 16), 4.0, 0.1, 0.6)
    density = 1 + 0.1 * torch.rand(20, 16, dtype=torch.float64)
    u = 0.1 * torch.randn(2, 20, 16, dtype=torch.float64)
    flow.f = flow.equilibrium(density, u)
    for ours, expected in zip(flow.moments(), (density, u), strict=True):
        torch.testing.assert_close(ours, expected)


def test_mass_is_kept_but_for_inflow_and_outflow():
    flow = _Flow((40, 24), 5.0, 0.1, 0.6)
    before = flow.f[:, 2:-2].sum()
    flow.step()
    edge = 24 * 2 * 0.5  # nothing but what crosses two lines of 24 cells in a step
    assert (flow.f[:, 2:-2].sum() - before).abs() < edge
    inner = flow.f[:, 5:-5].sum()
    flow.step()
    assert (flow.f[:, 5:-5].sum() - inner).abs() < edge


def test_the_fluid_flows_around_the_cylinder():
    wake = cylinder_wake(20.0, **SMALL | {"warm_up": 400})
    u, solid = wake["u"][-1], wake["solid"].bool()
    assert u.isfinite().all()
    assert (u[:, solid] == 0).all()
    middle = solid.any(dim=1).nonzero().float().mean().round().int()
    assert u[0, middle, 0] > 0.1  # faster beside it than where it comes in
    assert u[0, middle + 5, 12] < 0.05  # and slow behind it
    torch.testing.assert_close(u[0, 0], torch.full_like(u[0, 0], 0.1), rtol=0, atol=0.01)
    assert wake["t"].tolist() == [0, 3, 6, 9]


def test_it_is_kept_on_disk(tmp_path):
    first = cylinder_wake(**SMALL, root=tmp_path)
    again = cylinder_wake(**SMALL, root=tmp_path)
    assert torch.equal(first["u"], again["u"])


def test_modes_are_orthonormal_and_ordered():
    fields = torch.randn(9, 2, 4, 5, dtype=torch.float64)
    coefficients, modes, mean = pod(fields, 4)
    flat = modes.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(coefficients, (fields - mean).flatten(1) @ flat.T)
    assert (coefficients.var(0).diff() < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cylinder_wake(num_times=0), "num_times must be at least 1, got 0"),
        (lambda: cylinder_wake(speed=0.4), r"speed must be above 0 and at most 0\.3, got 0\.4"),
        (lambda: cylinder_wake(diameter=40.0), r"diameter must be from 2 to half.*got 40\.0"),
        (lambda: cylinder_wake(1e4), r"reynolds must be above 0 and at most 600 .*got 10000\.0"),
        (lambda: cylinder_wake(-1.0), r"reynolds must be above 0 .*got -1\.0"),
        (lambda: pod(torch.zeros(3, 5), 4), "num_modes must be from 1 to 3, got 4"),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
