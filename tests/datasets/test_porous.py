"""Conduction through porous media, against closed forms and a direct solver."""

import builtins
import math
import warnings

import numpy as np
import pytest
import torch

from neurenix_ms.datasets import porous
from neurenix_ms.datasets.porous import PorousConduction, effective_conductivity

scipy_sparse = pytest.importorskip("scipy.sparse")
scipy_linalg = pytest.importorskip("scipy.sparse.linalg")
# imported here, so that no single test pays for it
pytest.importorskip("porespy")
taufactor = pytest.importorskip("taufactor")
distance_transform_edt = pytest.importorskip("scipy.ndimage").distance_transform_edt


def make(root, num_samples=2, size=24, spatial_dims=2, **options):
    return PorousConduction(root, num_samples, size, spatial_dims, progress=False, **options)


def solve_directly(pores):
    """Potential and relative conductance in float64 by a sparse factorization."""
    pores = np.asarray(pores, dtype=bool)
    number = np.full(pores.shape, -1)
    number[pores] = np.arange(pores.sum())
    diagonal, right = np.zeros(pores.sum()), np.zeros(pores.sum())
    rows, columns = [], []
    for axis in range(pores.ndim):
        along = np.moveaxis(number, axis, 0)
        low, high = along[:-1].ravel(), along[1:].ravel()
        both = (low >= 0) & (high >= 0)
        low, high = low[both], high[both]
        rows += [low, high]
        columns += [high, low]
        np.add.at(diagonal, low, 1)
        np.add.at(diagonal, high, 1)
    for face, value in ((number[0], -0.5), (number[-1], 0.5)):
        cells = face[face >= 0]
        diagonal[cells] += 2  # the end face is half a cell away
        right[cells] += 2 * value
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    off_diagonal = scipy_sparse.coo_matrix(
        (-np.ones(len(rows)), (rows, columns)), (len(right),) * 2
    )
    matrix = (off_diagonal + scipy_sparse.diags(diagonal)).tocsc()
    potential = np.zeros(pores.shape)
    potential[pores] = scipy_linalg.spsolve(matrix, right)
    inflow = 2 * (potential[0] + 0.5)[pores[0]].sum()
    length = pores.shape[0]
    return torch.from_numpy(potential), inflow * length / (pores.size / length)


def linear_potential(shape, dtype=torch.float64):
    length = shape[0]
    steps = (torch.arange(length, dtype=dtype) + 0.5) / length - 0.5
    return steps.reshape(1, 1, length, *(1,) * (len(shape) - 1)).expand(1, 1, *shape)


@pytest.mark.parametrize("shape", [(2,), (7,), (8, 5), (5, 8), (64, 64), (6, 3, 4)])
def test_the_empty_box_has_conductivity_one(shape):
    potential = linear_potential(shape)
    result = effective_conductivity(potential, torch.ones_like(potential))
    torch.testing.assert_close(result, torch.ones(1, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(8, 6), (7, 4, 3)])
def test_straight_channels_conduct_as_their_fraction_of_the_area(shape):
    torch.manual_seed(0)
    cross_section = torch.rand(shape[1:]) < 0.5
    pores = cross_section.expand(1, 1, *shape)
    result = effective_conductivity(linear_potential(shape), pores)
    assert result.item() == pytest.approx(cross_section.double().mean().item(), rel=1e-12)


def test_a_narrowing_conducts_as_resistances_in_series():
    # two cells side by side, then one: half the steps, the same flux in every layer
    flux = 0.1
    potential = torch.zeros(1, 1, 6, 2, dtype=torch.float64)
    pores = torch.ones(1, 1, 6, 2)
    pores[:, :, 3:, 1] = 0
    potential[0, 0, :, 0] = torch.tensor([0, 0.5, 1, 2, 3, 4], dtype=torch.float64) * flux
    potential[0, 0, :3, 1] = torch.tensor([0, 0.5, 1], dtype=torch.float64) * flux
    result = effective_conductivity(potential, pores)
    assert result.item() == pytest.approx(flux * 6 / 2, rel=1e-12)


def test_a_solid_layer_across_stops_everything_that_crosses_it():
    pores = torch.ones(1, 1, 5, 4, dtype=torch.float64)
    pores[:, :, 2] = 0
    potential = torch.where(torch.arange(5).view(1, 1, 5, 1) < 2, -0.5, 0.5).double()
    assert effective_conductivity(potential.expand(1, 1, 5, 4), pores).item() == 0


def test_solid_does_not_count_whatever_its_potential():
    torch.manual_seed(0)
    pores = (torch.rand(3, 1, 6, 6) < 0.6).float()
    potential = torch.randn(3, 1, 6, 6)
    expected = effective_conductivity(potential, pores)
    spoiled = torch.where(pores > 0, potential, torch.tensor(1e3))
    torch.testing.assert_close(effective_conductivity(spoiled, pores), expected)
    torch.testing.assert_close(effective_conductivity(spoiled, pores.bool()), expected)


def test_each_sample_of_a_batch_is_measured_on_its_own():
    torch.manual_seed(0)
    potential, pores = torch.randn(4, 1, 5, 3, 2), (torch.rand(4, 1, 5, 3, 2) < 0.7).float()
    singly = [effective_conductivity(potential[i : i + 1], pores[i : i + 1]) for i in range(4)]
    result = effective_conductivity(potential, pores)
    assert result.shape == (4,)
    torch.testing.assert_close(result, torch.cat(singly))


def test_the_conductivity_is_differentiable():
    torch.manual_seed(0)
    potential = torch.randn(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    pores = torch.rand(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(effective_conductivity, (potential, pores))


@pytest.mark.parametrize(
    ("spatial_dims", "size", "generator"),
    [
        (2, 24, "blobs"),
        (2, (20, 31), "overlapping_spheres"),
        (3, 12, "overlapping_spheres"),
        (3, (14, 9, 11), "blobs"),
        (3, 12, "polydisperse_spheres"),
        (3, (9, 12, 10), "fibers"),
    ],
)
def test_samples_agree_with_a_direct_solver(tmp_path, spatial_dims, size, generator):
    data = make(tmp_path, 3, size, spatial_dims, generator=generator, grain_radius=2)
    for sample in data:
        potential, conductance = solve_directly(sample["pores"][0])
        assert (sample["potential"][0] - potential).abs().max() < 5e-3
        assert sample["D_rel"].item() == pytest.approx(conductance, rel=2e-3)


def test_fibers_are_added_until_the_porosity_is_reached():
    shape, radius = (20, 24, 22), 3
    pores = porous._generated("fibers", shape, radius, 0.5, 7)
    largest = math.pi * radius**2 * np.linalg.norm(shape) / pores.size  # volume of a fiber
    assert 0.5 - largest < pores.mean() <= 0.5
    assert (pores == porous._generated("fibers", shape, radius, 0.5, 7)).all()
    assert (pores != porous._generated("fibers", shape, radius, 0.5, 8)).any()


def test_a_fiber_is_a_cylinder_of_its_radius():
    solid = ~porous._generated("fibers", (41, 41, 41), 4, 0.985, 2)
    places = np.argwhere(solid) - np.argwhere(solid).mean(0)
    lengths = np.linalg.svd(places, compute_uv=False) / math.sqrt(len(places))
    assert lengths[1:] == pytest.approx([2, 2], abs=0.2)  # of a disc: half of its radius
    assert lengths[0] > 8


def test_polydisperse_spheres_have_large_and_small_radii():
    sizes = []
    for generator in ("overlapping_spheres", "polydisperse_spheres"):
        pores = porous._generated(generator, (40, 40, 40), 6, 0.9, 3)
        sizes.append(distance_transform_edt(~pores).max())
    assert sizes[1] > sizes[0] + 1
    assert sizes[1] < 1.5 * 6 + 1


def test_a_tighter_tolerance_comes_closer_to_the_direct_solver(tmp_path):
    sample = make(tmp_path, 1, 24, 2, tolerance=1e-4)[0]
    potential, conductance = solve_directly(sample["pores"][0])
    assert (sample["potential"][0] - potential).abs().max() < 2e-4
    assert sample["D_rel"].item() == pytest.approx(conductance, rel=1e-4)


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, 24), (3, 10)])
def test_the_potential_of_a_sample_gives_the_conductance_of_taufactor(tmp_path, spatial_dims, size):
    data = make(tmp_path, 3, size, spatial_dims, grain_radius=2)
    samples = torch.utils.data.default_collate(list(data))
    result = effective_conductivity(samples["potential"], samples["pores"])
    torch.testing.assert_close(result, samples["D_rel"], rtol=1e-5, atol=0)


def test_straight_channels_are_solved_exactly():
    pores = np.zeros((16, 16), dtype=bool)
    pores[:, [2, 3, 9]] = True
    sample = porous.solved(pores, 1e-3, 10_000)
    assert sample["D_rel"].item() == pytest.approx(3 / 16, rel=1e-5)
    expected = linear_potential((16, 16), torch.float32)[0, 0] * torch.from_numpy(pores)
    torch.testing.assert_close(sample["potential"][0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (16, 21)), (3, (8, 9, 10))])
def test_items_have_the_documented_content(tmp_path, spatial_dims, size):
    data = make(tmp_path, 2, size, spatial_dims, grain_radius=2)
    assert len(data) == 2
    for sample in data:
        assert set(sample) == {"pores", "distance", "potential", "D_rel"}
        assert all(value.dtype == torch.float32 for value in sample.values())
        for name in ("pores", "distance", "potential"):
            assert sample[name].shape == (1, *size)
        assert sample["D_rel"].shape == ()
        solid = sample["pores"] == 0
        assert set(sample["pores"].unique().tolist()) == {0.0, 1.0}
        assert (sample["distance"][solid] == 0).all()
        assert (sample["distance"][~solid] >= 1).all()
        assert (sample["potential"][solid] == 0).all()
        assert sample["potential"].abs().max() <= 0.5
        assert 0 < sample["D_rel"] < sample["pores"].mean()


def test_the_distance_is_that_to_the_nearest_solid_cell(tmp_path):
    sample = make(tmp_path, 1, 12, 2, grain_radius=2)[0]
    cells = torch.cartesian_prod(torch.arange(12), torch.arange(12)).float()
    solid = sample["pores"].flatten() == 0
    expected = torch.cdist(cells, cells[solid]).min(dim=1).values
    torch.testing.assert_close(sample["distance"].flatten(), expected)


def test_every_pore_is_connected_to_both_ends(tmp_path):
    from scipy.ndimage import label

    for sample in make(tmp_path, 4, 20, 2, grain_radius=2):
        regions, count = label(sample["pores"][0].numpy())
        for region in range(1, count + 1):
            assert (regions[0] == region).any()
            assert (regions[-1] == region).any()


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name])


def test_a_sample_depends_on_seed_and_number_only(tmp_path):
    few = make(tmp_path / "few", 2)
    np.random.seed(7)
    many = make(tmp_path / "many", 4)
    for index in range(2):
        assert_same(few[index], many[index])
    other = make(tmp_path / "other", 1, seed=1)
    assert not torch.equal(few[0]["pores"], other[0]["pores"])
    assert not torch.equal(few[0]["pores"], few[1]["pores"])


def test_a_resumed_run_gives_the_samples_of_an_uninterrupted_one(tmp_path):
    whole = make(tmp_path / "whole", 4)
    broken = make(tmp_path / "broken", 4)
    broken.cache.path(0).unlink()
    content = broken.cache.path(2).read_bytes()
    broken.cache.path(2).write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="000002.pt is not used and computed again"):
        resumed = make(tmp_path / "broken", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(4):
            assert_same(whole[index], resumed[index])


def test_making_samples_leaves_the_global_generator_alone(tmp_path):
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    make(tmp_path, 1)
    assert np.random.rand() == expected


def test_cached_samples_need_no_solver(tmp_path, monkeypatch):
    make(tmp_path, 2)

    def forbid():
        raise AssertionError("solvers were imported")

    monkeypatch.setattr(porous, "import_solvers", forbid)
    make(tmp_path, 2)[1]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    plain_import = builtins.__import__

    def without_porespy(name, *args, **kwargs):
        if name == "porespy":
            raise ImportError("No module named 'porespy'")
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_porespy)
    with pytest.raises(ImportError, match=r"pip install 'neurenix_ms\[datasets\]'"):
        make(tmp_path, 1)


def test_solutions_that_do_not_converge_are_reported_and_replaced(tmp_path):
    with pytest.warns(UserWarning, match=r"taufactor did not converge to 0.001 in 300 iter"):
        hasty = make(tmp_path / "hasty", 6, 32, max_iterations=300)
    for sample in hasty:
        conductance = solve_directly(sample["pores"][0])[1]
        assert sample["D_rel"].item() == pytest.approx(conductance, rel=2e-3)


def test_a_flux_that_is_not_a_number_is_no_solution(monkeypatch):
    plain_sweep = taufactor.Solver.sum_weighted_neighbours
    monkeypatch.setattr(
        taufactor.Solver, "sum_weighted_neighbours", lambda self: plain_sweep(self) * torch.nan
    )
    assert porous.solved(np.ones((16, 16), dtype=bool), 1e-3, 10_000) is None


def test_geometries_that_never_conduct_end_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(porous, "MAX_DRAWS", 5)
    with pytest.raises(RuntimeError, match=r"none of 5 geometries of sample 0 conducts"):
        make(tmp_path, 1, porosity=(0.05, 0.1))


def test_nothing_is_printed(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(tmp_path, 3, 32, max_iterations=300)
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_while_samples_are_made(tmp_path, capsys):
    PorousConduction(tmp_path, 1, 16, 2)
    assert "making porous_conduction_2d: 100%" in capsys.readouterr().err
    PorousConduction(tmp_path, 1, 16, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"spatial_dims": 1}, r"spatial_dims must be one of \[2, 3\], got 1"),
        ({"size": 3}, "size must be at least 4 along each of 2 axes, got 3"),
        ({"size": (8, 8, 8)}, r"along each of 2 axes, got \(8, 8, 8\)"),
        ({"generator": "voronoi"}, r"generator must be one of \['blobs'.*, got 'voronoi'"),
        ({"generator": "fibers"}, 'generator "fibers" needs spatial_dims 3, got 2'),
        ({"porosity": (0.7, 0.3)}, r"range \(low, high\) between 0 and 1, got \(0.7, 0.3\)"),
        ({"porosity": (0.0, 0.3)}, r"between 0 and 1, got \(0.0, 0.3\)"),
        ({"porosity": (0.4, 1.0)}, r"between 0 and 1, got \(0.4, 1.0\)"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"grain_radius": 0}, "grain_radius must be at least 1 cell, got 0"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1, got 0.0"),
        ({"max_iterations": 100}, "max_iterations must be at least 200, got 100"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_numbers_beyond_the_samples_are_refused(tmp_path):
    data = make(tmp_path, 1, 16)
    for index in (1, -1):
        with pytest.raises(IndexError, match=f"index must lie between 0 and 0, got {index}"):
            data[index]


@pytest.mark.parametrize(
    ("potential", "pores", "message"),
    [
        ((2, 3), (2, 3), r"1 to 3 spatial axes, got shape \(2, 3\)"),
        ((2, 2, 4), (2, 2, 4), r"1 to 3 spatial axes, got shape \(2, 2, 4\)"),
        ((2, 1, 4, 4), (2, 1, 4, 3), r"shape \(2, 1, 4, 4\) of the pot.*, got \(2, 1, 4, 3\)"),
        ((2, 1, 1, 4), (2, 1, 1, 4), "must have 2 cells or more, got 1"),
    ],
)
def test_maps_of_the_wrong_shape_are_refused(potential, pores, message):
    with pytest.raises(ValueError, match=message):
        effective_conductivity(torch.zeros(potential), torch.zeros(pores))


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["blobs", "overlapping_spheres"])
def test_conductance_falls_with_porosity_as_in_archies_law(tmp_path, generator):
    data = make(tmp_path, 12, 32, 3, generator=generator, porosity=(0.4, 0.8))
    porosity = torch.stack([sample["pores"].mean() for sample in data])
    conductance = torch.stack([sample["D_rel"] for sample in data])
    exponent = (conductance.log() @ porosity.log()) / (porosity.log() @ porosity.log())
    assert 1.5 < exponent < 2.5  # random media: between Bruggeman's 1.5 and 2.5
