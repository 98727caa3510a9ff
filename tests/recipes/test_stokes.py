"""Stokes flow in voxels: closed forms, published drags, conservation and symmetries."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurenix_ms.recipes.permeability import stokes
from neurenix_ms.recipes.permeability.stokes import StaggeredGrid


def medium(size: int = 12, porosity: float = 0.5, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(size,) * 3)
    blurred = gaussian_filter(noise, 1.5, mode="wrap")
    return blurred < np.quantile(blurred, porosity)


def duct_flow(points: np.ndarray, side: float) -> np.ndarray:
    """The flow through a square duct under a unit force, by its series."""
    y, z = points[:, None], points[None, :]
    flow = y * (side - y) / 2 + 0 * z
    for n in range(1, 60, 2):
        wave = n * np.pi / side
        part = np.cosh(wave * (z - side / 2)) / np.cosh(wave * side / 2)
        flow = flow - 4 * side**2 / (n * np.pi) ** 3 * np.sin(wave * y) * part
    return flow


def duct_permeability(side: float) -> float:
    """Mean of the flow through a square duct."""
    odd = np.arange(1, 200, 2)
    return side**2 / 12 * (1 - np.sum(192 / (np.pi * odd) ** 5 * np.tanh(odd * np.pi / 2)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("height", [1, 3, 8])
def test_a_plane_channel_has_its_closed_form(axis, height):
    shape = [2, 2, 2]
    across = (axis + 1) % 3
    shape[across] = height + 1
    pores = np.ones(shape, dtype=bool)
    pores[(slice(None),) * across + (0,)] = False
    flow = StaggeredGrid(pores).flow(axis)
    # h²/12, and what half a voxel between the walls and the first velocities adds
    open_part = flow.permeability * (height + 1) / height
    assert open_part == pytest.approx((height**2 + 2) / 12, rel=1e-9)
    profile = np.moveaxis(flow.velocity[axis], across, 0)[1:, 0, 0]
    points = np.arange(height) + 0.5
    assert profile == pytest.approx(points * (height - points) / 2 + 1 / 8, rel=1e-9)


def test_a_square_duct_converges_to_its_series_with_second_order():
    errors = []
    for side in (4, 8, 16):
        pores = np.zeros((1, side + 1, side + 1), dtype=bool)
        pores[:, 1:, 1:] = True
        flow = StaggeredGrid(pores).flow(0)
        measured = flow.permeability * (side + 1) ** 2 / side**2
        errors.append(abs(measured / duct_permeability(side) - 1))
        series = duct_flow(np.arange(side) + 0.5, side)
        apart = np.abs(flow.velocity[0, 0, 1:, 1:] - series).max() / series.max()
        assert apart < 2.2 / side**2
    assert errors[2] < 0.016
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert orders == pytest.approx([2, 2], abs=0.1)


ZICK_AND_HOMSY = [(0.064, 2.810), (0.216, 7.442), (0.343, 15.4), (0.45, 28.1)]  # 1982, table 2


def drag(fraction: float, size: int) -> float:
    """Drag on a sphere of a cubic array, divided by that of a single one in the same mean flow."""
    radius = size * (3 * fraction / (4 * np.pi)) ** (1 / 3)
    points = np.arange(size) + 0.5 - size / 2
    squares = points[:, None, None] ** 2 + points[:, None] ** 2 + points**2
    flow = StaggeredGrid(squares > radius**2).flow(0)
    return size**3 / (6 * np.pi * radius * flow.permeability)


@pytest.mark.parametrize(("fraction", "published"), ZICK_AND_HOMSY)
def test_a_cubic_array_of_spheres_has_the_published_drag(fraction, published):
    assert drag(fraction, 16) == pytest.approx(published, rel=0.09)


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "published"), ZICK_AND_HOMSY[1:])
def test_finer_spheres_come_closer_to_the_published_drag(fraction, published):
    assert drag(fraction, 24) == pytest.approx(published, rel=0.05)


def test_mass_is_conserved_in_every_voxel_and_the_flux_is_equal_in_all_layers():
    pores = medium()
    flow = StaggeredGrid(pores).flow(0, tolerance=1e-10)
    inflow = sum(np.roll(flow.faces[a], 1, a) - flow.faces[a] for a in range(3))
    assert np.abs(inflow[pores]).max() == pytest.approx(flow.divergence, abs=1e-12)
    assert flow.divergence < 1e-9
    flux = flow.faces[0].sum(axis=(1, 2))
    assert flux == pytest.approx(np.full(12, flux[0]), rel=1e-6)
    assert flow.permeability == pytest.approx(flux.mean() / 12**2)
    assert flow.velocity[0].mean() == pytest.approx(flow.permeability)
    assert not flow.velocity[:, ~pores].any()
    loose = StaggeredGrid(pores).flow(0, tolerance=1e-3)
    assert loose.divergence > flow.divergence
    assert loose.permeability == pytest.approx(flow.permeability, rel=1e-2)


def test_the_force_does_the_work_that_friction_dissipates():
    grid = StaggeredGrid(medium())
    flow = grid.flow(1, tolerance=1e-10)
    friction = 0.0
    for axis in range(3):
        values = flow.faces[axis][grid.open[axis]]
        friction += values @ (grid._viscous_terms(axis) @ values)
    assert friction == pytest.approx(flow.faces[1].sum(), rel=1e-8)


def test_mirroring_shifting_and_turning_a_medium_keeps_its_permeability():
    pores = medium()
    known = [StaggeredGrid(pores).flow(axis, 1e-9).permeability for axis in range(3)]
    assert len(set(np.round(known, 3))) == 3  # the axes differ
    for axis in range(3):
        mirrored = StaggeredGrid(np.flip(pores, axis)).flow(0, 1e-9)
        assert mirrored.permeability == pytest.approx(known[0], rel=1e-7)
    mirrored = StaggeredGrid(np.flip(pores, 0)).flow(0, 1e-9)
    straight = StaggeredGrid(pores).flow(0, 1e-9)
    assert np.flip(mirrored.velocity[0], 0) == pytest.approx(straight.velocity[0], abs=1e-7)
    shifted = StaggeredGrid(np.roll(pores, (3, 5, 1), (0, 1, 2))).flow(2, 1e-9)
    assert shifted.permeability == pytest.approx(known[2], rel=1e-7)
    turned = StaggeredGrid(np.moveaxis(pores, 1, 0)).flow(0, 1e-9)
    assert turned.permeability == pytest.approx(known[1], rel=1e-7)


def test_a_pore_without_a_way_out_is_at_rest():
    pores = np.zeros((8, 8, 8), dtype=bool)
    pores[2:6, 2:6, 2:6] = True
    grid = StaggeredGrid(pores)
    assert np.abs(grid.flow(0, 1e-12).velocity).max() < 1e-8
    assert grid.conductivity(0, 1e-12) == pytest.approx(0, abs=1e-10)


def test_conduction_has_its_closed_forms():
    channel = np.ones((4, 4, 4), dtype=bool)
    channel[:, :, 3] = False
    grid = StaggeredGrid(channel)
    assert grid.conductivity(0) == pytest.approx(0.75)
    assert grid.conductivity(2) == pytest.approx(0, abs=1e-9)
    pores = medium()
    values = [StaggeredGrid(pores).conductivity(axis, 1e-9) for axis in range(3)]
    assert max(values) < pores.mean()  # the bound of Wiener
    turned = StaggeredGrid(np.moveaxis(pores, 2, 0)).conductivity(0, 1e-9)
    assert turned == pytest.approx(values[2], rel=1e-7)


def test_wrong_media_raise():
    with pytest.raises(
        ValueError, match=r"boolean array of three axes, got float64 of shape \(4, 4\)"
    ):
        StaggeredGrid(np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"pores and solid, got a porosity of 1"):
        StaggeredGrid(np.ones((4, 4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"pores and solid, got a porosity of 0"):
        StaggeredGrid(np.zeros((4, 4, 4), dtype=bool))


def test_a_solver_that_does_not_converge_raises(monkeypatch):
    monkeypatch.setattr(stokes, "MAX_ITERATIONS", 1)
    with pytest.raises(RuntimeError, match="a tolerance of 1e-06, got none after 1 steps"):
        StaggeredGrid(medium()).flow(0)
