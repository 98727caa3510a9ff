"""Drifting particles: an exact flow, an integrator of fourth order, mass that stays."""

import itertools
import math

import pytest
import torch

from neurenix_ms.conservation import total_mass
from neurenix_ms.datasets.currents import (
    LENGTH,
    RELEASE,
    SHELF,
    Eddies,
    Islands,
    advanced,
    currents,
    gradient,
    place_for,
    stagnation_points,
    wrapped,
)
from neurenix_ms.datasets.ocean import DriftDensity, counted, grid_edges

MIDDLE = torch.tensor([50.0, 50.0], dtype=torch.float64)


def eddies(seed=3):
    return Eddies.random(torch.Generator().manual_seed(seed))


def flow(sink=0.0, islands=None, seed=3):
    return currents(eddies(seed), MIDDLE, sink, islands)


def islands(count=4, seed=5):
    return Islands.random(count, MIDDLE, torch.Generator().manual_seed(seed))


def places(n=400):
    return LENGTH * torch.rand(n, 2, dtype=torch.float64)


def test_currents_are_periodic_free_of_divergence_and_of_the_stated_speed():
    x = places(20_000)
    velocity = flow()
    torch.testing.assert_close(velocity(x + LENGTH, 7.0), velocity(x, 7.0))
    assert velocity(x, 7.0).square().sum(1).mean().sqrt().item() == pytest.approx(1, rel=0.15)
    jacobian = gradient(velocity, x[:100], 7.0)
    assert jacobian.diagonal(dim1=1, dim2=2).sum(1).abs().max() < 1e-12


def test_the_integrator_has_fourth_order():
    x, velocity = places(), flow()
    exact = advanced(x, velocity, 0.0, 24.0, 400)
    errors = [(advanced(x, velocity, 0.0, 24.0, n) - exact).abs().max() for n in (12, 24, 48)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(3.5 < order < 4.6 for order in orders)


def test_a_steady_turn_is_exact_to_a_metre():
    def turn(x, time):
        return 2 * math.pi / 24 * torch.stack([-x[:, 1], x[:, 0]], dim=1)

    x = places() - 50
    assert (advanced(x, turn, 0.0, 24.0, 48) - x).abs().max() < 1e-3


def test_backwards_in_time_everything_returns(tmp_path):
    x, velocity = places(), flow()
    there = advanced(x, velocity, 0.0, 72.0, 144)
    back = advanced(there, lambda y, t: -velocity(y, 72.0 - t), 0.0, 72.0, 144)
    assert (back - x).abs().max() < 1e-3
    options = {"size": 16, "steps": 3, "num_particles": 50, "progress": False}
    forward = DriftDensity(tmp_path, 1, **options)[0]["velocity"]
    backward = DriftDensity(tmp_path, 1, time_reversed=True, **options)[0]["velocity"]
    torch.testing.assert_close(backward, -forward.flip(0))


def test_every_density_has_mass_one_and_starts_within_five_kilometers(tmp_path):
    drift = DriftDensity(tmp_path, 2, size=50, steps=4, num_particles=2000, progress=False)
    for sample in (drift[0], drift[1]):
        assert sample["density"].dtype == torch.float32
        mass = total_mass(sample["density"].unsqueeze(1), cell_area=(LENGTH / 50) ** 2)
        torch.testing.assert_close(mass, torch.ones(5, 1))
        assert (sample["density"][0] > 0).sum() <= math.ceil(math.pi * 7.9**2 / 4)
    assert not torch.equal(drift[0]["density"], drift[1]["density"])


def test_a_cell_is_counted_where_it_is():
    x = torch.tensor([[10.0, 60.0], [10.0, 60.0], [-1.0, 101.0], [99.0, 1.0]], dtype=torch.float64)
    density = counted(x, grid_edges(4)) * 25**2
    assert density[0, 2] == 0.5
    assert density[3, 0] == 0.5


def test_a_sink_draws_particles_together(tmp_path):
    options = {"size": 50, "steps": 12, "num_particles": 1000, "progress": False}
    free = DriftDensity(tmp_path, 1, **options)[0]["density"][-1]
    drawn = DriftDensity(tmp_path, 1, sink=4.0, **options)[0]["density"][-1]
    assert (drawn > 0).sum() < 0.5 * (free > 0).sum()


def test_the_same_seed_gives_the_same_data(tmp_path):
    options = {"size": 16, "steps": 2, "num_particles": 50, "progress": False}
    first = DriftDensity(tmp_path / "a", 2, **options)[1]
    assert all(
        torch.equal(first[k], v) for k, v in DriftDensity(tmp_path / "b", 2, **options)[1].items()
    )
    other = DriftDensity(tmp_path, 2, seed=1, **options)[1]
    assert not torch.equal(first["velocity"], other["velocity"])


def test_the_velocity_is_that_of_the_stream_function_with_coasts_too():
    sea, x = islands(), places(500)
    waves = eddies()

    def stream(y):
        return sea.sea(y)[0] * waves.stream(y, 5.0)

    slope = torch.func.vmap(torch.func.grad(stream))(x)
    across = torch.stack([slope[:, 1], -slope[:, 0]], dim=1)
    torch.testing.assert_close(flow(islands=sea)(x, 5.0), across)


def test_a_coast_is_a_streamline_and_land_is_still():
    sea = islands()
    turn = 2 * math.pi * torch.rand(200, 1, dtype=torch.float64)
    out = torch.cat([turn.cos(), turn.sin()], dim=1)
    velocity = flow(sink=2.0, islands=sea)
    for center, radius in zip(sea.centers, sea.radii, strict=True):
        assert (velocity(center + radius * out, 3.0) * out).sum(1).abs().max() < 1e-10
        assert velocity(center + 0.7 * radius * out, 3.0).abs().max() == 0
        beyond = center + (radius + 1.0) * out
        assert velocity(beyond, 3.0).norm(dim=1).max() > 0.01


def test_islands_keep_away_from_the_release():
    sea = islands(30)
    assert (wrapped(sea.centers - MIDDLE).norm(dim=1) - sea.radii).min() > SHELF + RELEASE
    patch = MIDDLE + RELEASE / 2 * torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(flow(islands=sea)(patch, 3.0), flow()(patch, 3.0))


def test_the_land_is_as_large_as_the_islands():
    sea = Islands(torch.tensor([[3.0, 60.0]]).double(), torch.tensor([8.0]).double())
    land = sea.land(grid_edges(1000))
    assert land.double().mean().item() * LENGTH**2 == pytest.approx(math.pi * 64, rel=0.03)
    assert land[30, 600]
    assert land[950 + 10, 600]  # across the border
    assert not land[30, 690]


def test_particles_let_go_among_islands_never_land():
    sea = islands(8)
    x = places(1000)
    x = x[sea.sea(x)[0] > 1e-4]
    assert len(x) > 300
    there = advanced(x, flow(islands=sea), 0.0, 72.0, 72)
    assert sea.sea(there)[0].min() > 0
    assert (there - x).norm(dim=1).max() > 10


def test_land_holds_nothing_and_its_currents_are_still(tmp_path):
    options = {"size": 64, "steps": 2, "num_particles": 2000, "progress": False}
    item = DriftDensity(tmp_path, 1, land=8, **options)[0]
    land = item["land"] > 0
    assert land.shape == (64, 64)
    assert 0.02 < land.float().mean() < 0.3
    assert item["density"][:, land].abs().max() == 0
    assert item["velocity"][..., land].abs().max() == 0
    moves = item["velocity"][..., ~land].abs().amax(dim=(0, 1)) > 0
    assert moves.float().mean() > 0.8  # the others are land in part, their middle for one
    mass = total_mass(item["density"].unsqueeze(1), ~land, (LENGTH / 64) ** 2)
    torch.testing.assert_close(mass, torch.ones(3, 1))


def test_unequal_cells_fill_the_square_and_hold_the_same_particles(tmp_path):
    options = {"size": 40, "steps": 1, "num_particles": 2000, "progress": False}
    even = DriftDensity(tmp_path, 1, **options)[0]
    item = DriftDensity(tmp_path, 1, cell_sizes=3.0, **options)[0]
    area = item["cell_sizes"].prod(0)
    assert item["cell_sizes"].shape == (2, 40, 40)
    assert area.sum().item() == pytest.approx(LENGTH**2)
    for axis in (0, 1):
        widths = item["cell_sizes"][axis]
        assert (widths.amax() / widths.amin()).item() == pytest.approx(3, rel=0.02)
        assert torch.equal(widths, widths.select(1 - axis, 0).unsqueeze(1 - axis).expand(40, 40))
    mass = total_mass(item["density"].unsqueeze(1), cell_area=area)
    torch.testing.assert_close(mass, torch.ones(2, 1))
    assert not torch.equal(item["density"], even["density"])
    same = DriftDensity(tmp_path, 1, cell_sizes=1.0, **options)[0]
    torch.testing.assert_close(same["cell_sizes"], torch.full((2, 40, 40), 2.5))
    torch.testing.assert_close(same["density"], even["density"])


def test_evenly_spread_particles_have_one_density_on_unequal_cells():
    axis = (torch.arange(1000, dtype=torch.float64) + 0.5) / 10
    density = counted(torch.cartesian_prod(axis, axis), grid_edges(8, 2.0))
    torch.testing.assert_close(density, torch.full_like(density, 1e-4), rtol=0.02, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_positions_are_saddles_eddies_and_lines_of_attraction(seed):
    velocity = flow(seed=seed)

    def at(seeding):
        x = place_for(velocity, seeding, MIDDLE)
        return x, gradient(velocity, x[None])[0]

    assert at("anywhere")[0] is MIDDLE
    saddle, j = at("hyperbolic")
    assert velocity(saddle, 0.0).norm() < 1e-9
    assert torch.linalg.det(j) < 0
    eddy, turn = at("eddies")
    assert velocity(eddy, 0.0).norm() < 1e-9
    assert torch.linalg.eigvals(turn).imag.abs().min() > 0.1
    _, pull = at("converging")
    strongest = torch.linalg.eigvalsh((pull + pull.T) / 2)[0]
    others = gradient(velocity, places(3000))
    least = torch.linalg.eigvalsh((others + others.mT) / 2)[:, 0].min()
    assert strongest <= least + 0.01
    # nothing at rest is stronger
    found = gradient(velocity, stagnation_points(velocity, places(400)))
    hyperbolic = torch.linalg.det(found) < 0
    assert hyperbolic.any()
    assert not hyperbolic.all()
    rates = torch.linalg.eigvals(found).real.amax(1)
    assert rates.max() <= torch.linalg.eigvals(j).real.max() + 1.0
    assert torch.linalg.det(turn) >= torch.linalg.det(found).max() - 1e-9


def test_a_linear_saddle_and_a_linear_turn_are_at_rest_where_they_should_be():
    middle = torch.tensor([40.0, 70.0], dtype=torch.float64)
    for j in ([[1.0, 0.0], [0.0, -1.0]], [[0.0, 2.0], [-2.0, 0.0]]):
        matrix = torch.tensor(j, dtype=torch.float64)

        def linear(x, time, matrix=matrix):
            return (x - middle) @ matrix.T

        x = stagnation_points(linear, middle + 10 * torch.rand(9, 2, dtype=torch.float64))
        assert len(x) == 9
        torch.testing.assert_close(x, middle.expand(9, 2))
        torch.testing.assert_close(gradient(linear, x), matrix.expand(9, 2, 2))


def test_a_patch_stays_together_in_an_eddy_and_is_torn_at_a_saddle(tmp_path):
    options = {"size": 50, "steps": 8, "num_particles": 200, "progress": False}

    def area(seeding):
        drift = DriftDensity(tmp_path, 3, seeding=seeding, **options)
        return sum((drift[i]["density"][-1] > 0).sum().item() for i in range(3))

    assert area("eddies") < 0.7 * area("hyperbolic")
    assert area("eddies") < 0.7 * area("converging")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"land": -1}, "land must be a number of islands, 0 or more, got -1"),
        (
            {"cell_sizes": 0.5},
            "cell_sizes must be a ratio of 1 or more, widest over narrowest, got 0.5",
        ),
        ({"seeding": "land"}, "seeding must be one of .*'hyperbolic', 'eddies'.*, got 'land'"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sink": -1.0}, "sink must be a speed of 0 or more, got -1.0"),
    ],
)
def test_every_message(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DriftDensity(tmp_path, 1, **options)


def test_a_sample_beyond_the_last_is_refused(tmp_path):
    drift = DriftDensity(tmp_path, 1, size=8, steps=1, num_particles=9, progress=False)
    assert len(drift) == 1
    with pytest.raises(IndexError, match="index must be below 1, got 1"):
        drift[1]
