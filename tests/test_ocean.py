"""Drifting particles: an exact flow, an integrator of fourth order, mass that stays."""

import itertools
import math

import pytest
import torch

from neurenix_ms.conservation import total_mass
from neurenix_ms.datasets.ocean import LENGTH, DriftDensity, advanced, counted, currents


def flow(sink=0.0):
    generator = torch.Generator().manual_seed(3)
    return currents(generator, torch.tensor([50.0, 50.0], dtype=torch.float64), sink)


def places(n=400):
    return LENGTH * torch.rand(n, 2, dtype=torch.float64)


def test_currents_are_periodic_free_of_divergence_and_of_the_stated_speed():
    x = places(20_000)
    velocity = flow()
    torch.testing.assert_close(velocity(x + LENGTH, 7.0), velocity(x, 7.0))
    assert velocity(x, 7.0).square().sum(1).mean().sqrt().item() == pytest.approx(1, rel=0.15)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: velocity(y, 7.0)))(x[:100])
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


def test_every_map_has_mass_one_and_starts_within_five_kilometres(tmp_path):
    drift = DriftDensity(tmp_path, 2, size=50, steps=4, num_particles=2000, progress=False)
    for sample in (drift[0], drift[1]):
        assert sample["density"].dtype == torch.float32
        mass = total_mass(sample["density"].unsqueeze(1), cell_area=(LENGTH / 50) ** 2)
        torch.testing.assert_close(mass, torch.ones(5, 1))
        assert (sample["density"][0] > 0).sum() <= math.ceil(math.pi * 7.9**2 / 4)
    assert not torch.equal(drift[0]["density"], drift[1]["density"])


def test_a_cell_is_counted_where_it_is():
    x = torch.tensor([[10.0, 60.0], [10.0, 60.0], [-1.0, 101.0], [99.0, 1.0]], dtype=torch.float64)
    density = counted(x, 4) * 25**2
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
    with pytest.raises(IndexError, match="sample 1 of 1"):
        drift[1]
