"""Traveling wave, Kuramoto-Sivashinsky and turbulence against exact solutions and balances."""

import math

import pytest
import torch

from neurenix_ms.datasets import kuramoto_sivashinsky, travelling_wave, turbulence2d
from neurenix_ms.datasets.spectral import etdrk4


def grid(n, length=2 * math.pi):
    return length * torch.arange(n, dtype=torch.float64) / n


def test_a_step_with_a_constant_rate_is_exact():
    linear = torch.tensor([-1e4, -3.0, -1e-7, 0.0, 0.5], dtype=torch.float64)
    v = etdrk4(linear, torch.ones_like, 0.1)(torch.full((5,), 2.0, dtype=torch.float64))
    growth = torch.where(linear == 0, 0.1, torch.expm1(0.1 * linear) / linear)
    torch.testing.assert_close(v, 2 * torch.exp(0.1 * linear) + growth, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("stiffness", [-1.0, -50.0])
def test_a_step_is_of_fourth_order(stiffness):
    linear = torch.tensor([stiffness], dtype=torch.float64)
    errors = []
    for steps in (16, 32):
        advance = etdrk4(linear, lambda v: -stiffness * v - v**2, 1 / steps)  # v' = -v^2
        v = torch.ones(1, dtype=torch.float64)
        for _ in range(steps):
            v = advance(v)
        errors.append(abs(v.item() - 0.5))
    assert errors[0] / errors[1] > 8


@pytest.mark.parametrize("omega", [4, 400])
def test_the_packet_travels_without_changing(omega):
    wave = travelling_wave(omega, num_times=11, num_points=501)
    shift = round(0.06 * 500)  # ten units of time
    torch.testing.assert_close(wave["u"][1:, shift:], wave["u"][:-1, :-shift])
    xi = torch.tensor(0.25 - 0.2 - 0.006 * 10, dtype=torch.float64)
    expected = torch.exp(-1000 * xi**2) * torch.sin(omega * xi)
    torch.testing.assert_close(wave["u"][1, 125], expected)


def test_long_waves_grow_and_short_ones_fade_as_linear_theory_says():
    x = grid(32)
    for k in (1, 2, 3):
        for nu in (0.2, 0.28, 1.0):
            start = 1e-7 * torch.cos(k * x)
            run = kuramoto_sivashinsky(
                nu, num_points=32, num_times=2, end_time=0.5, length=2 * math.pi, initial=start
            )
            expected = math.exp(0.5 * (k**2 - nu * k**4)) * start
            torch.testing.assert_close(run["u"][1], expected, rtol=0, atol=1e-12)


def test_half_the_step_leaves_about_a_sixteenth_of_the_error():
    runs = [
        kuramoto_sivashinsky(
            [0.2, 0.28], num_points=64, num_times=3, end_time=2.0, time_step=h, length=25.0
        )["u"]
        for h in (0.01, 0.005, 0.0025, 0.000625)
    ]
    errors = [(u - runs[-1]).abs().max().item() for u in runs[:-1]]
    assert runs[-1].abs().max() > 1
    assert errors[0] < 1e-5
    assert errors[0] / errors[1] > 13
    assert errors[1] / errors[2] > 14


def test_a_finer_grid_gives_the_same_waves():
    def run(n):
        x = grid(n, 20.0)
        start = torch.cos(2 * math.pi * x / 20) * (1 + torch.sin(2 * math.pi * x / 20))
        options = {"num_times": 2, "end_time": 3.0, "length": 20.0, "initial": start}
        return kuramoto_sivashinsky(0.3, num_points=n, **options)["u"][-1]

    torch.testing.assert_close(run(256)[::2], run(128), rtol=0, atol=1e-6)


def test_the_mean_of_the_waves_stays():
    u = kuramoto_sivashinsky(0.2, num_points=64, num_times=5, end_time=2.0)["u"]
    torch.testing.assert_close(u.mean(-1), u[:1].mean(-1).expand(5), rtol=0, atol=1e-12)


def test_several_values_give_what_each_gives_alone():
    options = {"num_points": 64, "num_times": 4, "end_time": 1.0}
    both = kuramoto_sivashinsky([0.2, 0.28], **options)
    for i, nu in enumerate((0.2, 0.28)):
        torch.testing.assert_close(both["u"][i], kuramoto_sivashinsky(nu, **options)["u"])
    assert both["nu"].tolist() == [0.2, 0.28]
    assert both["t"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert torch.equal(both["u"][0, 0], both["u"][1, 0])


def test_taylor_green_vortices_fade_exactly():
    x = grid(32)
    start = 2 * torch.cos(3 * x)[:, None] * torch.cos(3 * x)
    flow = turbulence2d(0.05, num_points=32, num_times=3, end_time=2.0, initial=start)
    fading = torch.exp(-2 * 9 * 0.05 * flow["t"])
    torch.testing.assert_close(flow["vorticity"], fading[:, None, None] * start, rtol=0, atol=1e-11)


def balances(w):
    """Energy, enstrophy, palinstrophy: half the mean squares of u, w, grad w."""
    n = w.shape[-1]
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    square = k[:, None] ** 2 + k**2
    power = torch.fft.fft2(w).abs().square() / n**4
    factors = [torch.where(square > 0, 1 / square.clamp(min=1), 0), torch.ones_like(square), square]
    return [0.5 * (factor * power).sum((-2, -1)) for factor in factors]


def test_without_viscosity_energy_and_enstrophy_stay():
    flow = turbulence2d(0.0, num_points=48, num_times=3, end_time=1.0, time_step=0.005)
    energy, enstrophy, _ = balances(flow["vorticity"])
    assert energy[0].item() == pytest.approx(0.5)
    torch.testing.assert_close(energy, energy[:1].expand(3), rtol=1e-6, atol=0)
    torch.testing.assert_close(enstrophy, enstrophy[:1].expand(3), rtol=1e-6, atol=0)
    assert (flow["vorticity"][2] - flow["vorticity"][0]).abs().max() > 1  # it moved


def test_energy_and_enstrophy_fade_by_their_budgets():
    nu, n = 0.02, 81
    flow = turbulence2d(nu, num_points=48, num_times=n, end_time=0.8, time_step=0.01)
    energy, enstrophy, palinstrophy = balances(flow["vorticity"])
    simpson = torch.ones(n, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    for content, loss in ((energy, enstrophy), (enstrophy, palinstrophy)):
        lost = 2 * nu * (simpson * loss).sum() * 0.01 / 3
        torch.testing.assert_close(content[0] - content[-1], lost, rtol=1e-5, atol=0)


def test_a_seed_gives_one_flow():
    options = {"num_points": 16, "num_times": 2, "end_time": 0.1}
    first, again, other = (turbulence2d(seed=s, **options)["vorticity"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    waves = [kuramoto_sivashinsky(0.25, seed=s, **options)["u"] for s in (0, 0, 1)]
    assert torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[0], waves[2])


@pytest.mark.parametrize("make", [turbulence2d, kuramoto_sivashinsky])
def test_a_cached_run_is_read_and_another_start_is_another_run(make, tmp_path):
    options = {"num_points": 16, "num_times": 2, "end_time": 0.1, "root": tmp_path}
    shape = (16, 16) if make is turbulence2d else (16,)
    first = make(0.2, **options)
    again = make(0.2, **options)
    assert all(torch.equal(first[name], again[name]) for name in first)
    (file,) = tmp_path.glob("*/000000.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="not used and computed again"):
        make(0.2, **options)
    for i in range(2):
        make(0.2, initial=torch.full(shape, float(i)), **options)
    make(0.2, seed=1, **options)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: travelling_wave(num_times=0), "num_times must be at least 1, got 0"),
        (lambda: travelling_wave(num_points=0), "num_points must be at least 1, got 0"),
        (lambda: kuramoto_sivashinsky(-1.0), "nu must be one positive number or several, got -1.0"),
        (lambda: kuramoto_sivashinsky([]), r"nu must be one positive number or several, got \[\]"),
        (lambda: kuramoto_sivashinsky(1, num_points=4), "num_points must be at least 8, got 4"),
        (lambda: kuramoto_sivashinsky(1, num_times=0), "num_times must be at least 1, got 0"),
        (lambda: kuramoto_sivashinsky(1, end_time=0), "end_time must be positive, got 0"),
        (lambda: kuramoto_sivashinsky(1, length=-2.0), "length must be positive, got -2.0"),
        (lambda: kuramoto_sivashinsky(1, time_step=0.0), "time_step must be positive, got 0.0"),
        (
            lambda: kuramoto_sivashinsky(1, num_points=8, initial=torch.zeros(9)),
            r"initial must have shape \(8,\), got \(9,\)",
        ),
        (lambda: turbulence2d(-0.1), "viscosity must be 0 or more, got -0.1"),
        (lambda: turbulence2d(float("nan")), "viscosity must be a finite number, got nan"),
        (
            lambda: turbulence2d(num_points=8, initial=torch.zeros(8)),
            r"initial must have shape \(8, 8\), got \(8,\)",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
