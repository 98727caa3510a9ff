"""The recipe of drifting density: its networks, its classical way, and that it runs and resumes."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from neurenix_ms.conservation import total_mass
from neurenix_ms.datasets import DriftDensity
from neurenix_ms.datasets.currents import LENGTH
from neurenix_ms.recipes.fitting import EveryGeometryOnce
from neurenix_ms.recipes.ocean import command as ocean
from neurenix_ms.recipes.ocean.maps import _to_middle
from neurenix_ms.recipes.ocean.models import PATCH, DriftUNet, Unrolled, carry, interpolated, stay
from neurenix_ms.recipes.ocean.report import error_table, intensity_table
from neurenix_ms.recipes.ocean.scores import noise_of, scores
from neurenix_ms.recipes.ocean.seas import SEAS, draw_seas
from neurenix_ms.recipes.ocean.training import (
    NUM_MIRRORS,
    DriftLoss,
    DriftWindows,
    maps_of,
    train,
    turned,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the samples that all tests here use."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(data: Path) -> list[dict[str, torch.Tensor]]:
    made = DriftDensity(data, 3, 16, 3, num_particles=100, progress=False)
    return [made[i] for i in range(3)]


def blob(n: int, at: tuple[float, float], width: float = 3.0) -> torch.Tensor:
    """A smooth periodic density of height 1, `(1, 1, n, n)`."""
    axes = [
        torch.exp((torch.cos(2 * math.pi * (torch.arange(n) - m) / n) - 1) * (n / width / 6.3) ** 2)
        for m in at
    ]
    return torch.outer(*axes)[None, None]


def uniform(n: int, cells: tuple[float, float]) -> torch.Tensor:
    """Velocities that carry by so many cells in six hours."""
    speed = torch.tensor(cells) * LENGTH / n / 6
    return speed[None, :, None, None].expand(1, 2, n, n)


@pytest.mark.parametrize("block", ["double", "single"])
@pytest.mark.parametrize("conserve", [False, True])
def test_a_density_moved_around_the_torus_gives_the_result_moved_as_far(block, conserve):
    model = DriftUNet(block, conserve=conserve).double()
    x = torch.randn(2, 3, 32, 24, dtype=torch.float64)
    moved = model(x.roll((8, -16), (2, 3)))
    torch.testing.assert_close(moved, model(x).roll((8, -16), (2, 3)))


def test_single_blocks_have_about_half_the_weights():
    double, single = (ocean._count(DriftUNet(block)) for block in ("double", "single"))
    assert 0.45 < single / double < 0.55


def test_mass_is_kept_by_the_network_that_keeps_it_and_not_by_the_other():
    x = torch.rand(2, 3, 16, 16)
    kept, free = (DriftUNet(conserve=conserve)(x) for conserve in (True, False))
    torch.testing.assert_close(total_mass(kept), total_mass(x[:, :1]))
    assert (total_mass(free) - total_mass(x[:, :1])).abs().min() > 1
    assert kept.min() >= 0


def test_a_residual_network_without_output_leaves_everything_where_it_is():
    model = DriftUNet(residual=True)
    torch.nn.init.zeros_(model.unet.head.conv.weight)
    torch.nn.init.zeros_(model.unet.head.conv.bias)
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model(x), stay(x))


def test_unrolled_steps_are_single_steps_one_after_the_other():
    model = DriftUNet(features=(2, 4))
    x = torch.rand(2, 1 + 2 * 2, 8, 8)
    first = model(x[:, :3])
    second = model(torch.cat([first, x[:, 3:]], dim=1))
    torch.testing.assert_close(Unrolled(model)(x), torch.cat([first, second], dim=1))


def test_a_periodic_field_is_interpolated_between_its_cells():
    n = 24
    axis = torch.arange(n) * 1.0
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None]
    x = blob(n, (3.0, 20.0), 6.0)
    for mode in ("bilinear", "bicubic"):
        torch.testing.assert_close(interpolated(x, cells, mode), x, atol=1e-5, rtol=1e-4)
        far = interpolated(x, cells - torch.tensor([5.0, 2 * n + 4]).view(1, 2, 1, 1), mode)
        torch.testing.assert_close(far, x.roll((5, 4), (2, 3)), atol=1e-4, rtol=1e-3)
    between = interpolated(x, cells - 0.5, "bicubic")
    torch.testing.assert_close(between, blob(n, (3.5, 20.5), 6.0), atol=0.02, rtol=0)


def test_a_uniform_current_carries_a_density_across_the_border():
    x = torch.cat([blob(32, (2.0, 29.0)), uniform(32, (-5.0, 4.0))], dim=1)
    torch.testing.assert_close(carry(x), blob(32, (-3.0, 33.0)), atol=2e-3, rtol=0)


def test_what_flows_together_becomes_denser_and_mass_stays():
    n, rate = 64, 0.02
    axis = 2 * math.pi * torch.arange(n) / n
    speed = -rate * LENGTH / (2 * math.pi) * torch.sin(axis - math.pi)
    velocity = torch.stack([speed[:, None].expand(n, n), speed.expand(n, n)])[None]
    x = torch.cat([blob(n, (32.0, 32.0), 6.0), velocity], dim=1)
    denser = carry(x)
    growth = (denser.amax() / x[:, :1].amax()).item()
    assert growth == pytest.approx(math.exp(2 * 6 * rate), rel=0.02)
    torch.testing.assert_close(total_mass(denser), total_mass(x[:, :1]), rtol=0.01, atol=0)
    torch.testing.assert_close(
        carry(torch.cat([denser, -velocity], 1)), x[:, :1], atol=0.02, rtol=0
    )


def test_the_classical_way_is_close_to_the_particles(tmp_path):
    made = DriftDensity(tmp_path, 1, 32, 2, num_particles=3000, seeding="eddies", progress=False)
    density, velocity = maps_of(made[0])
    x = torch.cat([density[:1], velocity[0]])[None]
    ours, nothing = (scores(way(x), density[None, 1:2])["error"][0] for way in (carry, stay))
    assert ours < 0.3
    assert ours < 0.7 * nothing


def test_windows_hold_what_follows_and_are_turned_with_their_currents(samples):
    windows = DriftWindows(samples, 2)
    assert len(windows) == NUM_MIRRORS * windows.num_windows == NUM_MIRRORS * 3 * 2
    density, velocity = maps_of(samples[1])
    torch.testing.assert_close(density[0].sum() * PATCH * (LENGTH / 16) ** 2, torch.tensor(1.0))
    x, target = windows[3]  # the second window of the second sample
    assert x.shape == (5, 16, 16)
    torch.testing.assert_close(target.sum((1, 2)), density[2:4].sum((1, 2)))
    match = [
        (i, j)
        for i in range(16)
        for j in range(16)
        if torch.equal(density[1].roll((i, j), (0, 1)), x[0])
    ]
    assert len(match) == 1
    torch.testing.assert_close(x[1:], velocity[1:3].flatten(0, 1).roll(match[0], (1, 2)))
    assert torch.equal(windows[3 + 8][0], windows[3 + 8][0])
    ways = {tuple(windows[3 + k * windows.num_windows][0][0].flatten().tolist()) for k in range(8)}
    assert len(ways) == NUM_MIRRORS


@pytest.mark.parametrize("way", range(NUM_MIRRORS))
def test_turned_currents_carry_turned_densities(way):
    torch.manual_seed(0)
    density = blob(24, (9.0, 14.0), 5.0)
    velocity = 0.4 * torch.randn(1, 2, 1, 1) + 0.3 * blob(24, (3.0, 4.0), 9.0) * torch.ones(2, 1, 1)
    there = carry(torch.cat([density, velocity], 1))
    turned_start = torch.cat(turned(density, velocity, way), 1)
    torch.testing.assert_close(carry(turned_start), turned(there, velocity, way)[0])


def test_the_truth_has_no_loss_and_mass_counts_as_much_as_is_said():
    truth = torch.rand(2, 3, 8, 8)
    assert DriftLoss(0.5)(truth, truth) == 0
    torch.testing.assert_close(DriftLoss()(1.1 * truth, truth), torch.tensor(0.01))
    torch.testing.assert_close(DriftLoss(0.5)(1.1 * truth, truth), torch.tensor(0.01 + 0.05))
    torch.testing.assert_close(DriftLoss()(truth * 0, truth), torch.tensor(1.0))


def test_scores_are_those_of_a_truth_told_double():
    truth = torch.rand(4, 2, 8, 8)
    truth /= truth.sum((2, 3), keepdim=True) * PATCH * (LENGTH / 8) ** 2
    found = scores(2 * truth, truth)
    for key, value in {
        "error": 1,
        "scatter": 0,
        "mass": 1,
        "mass off": 1,
        "peak": 2,
        "square": 4,
    }.items():
        assert found[key] == pytest.approx([value] * 2, abs=1e-4), key
    rms = (truth[:, 0] * PATCH).square().mean().sqrt().item()
    assert found["rmse"][0] == pytest.approx(rms, rel=1e-3)


def test_the_noise_of_counting_is_that_of_two_counts():
    share = torch.full((400, 1, 4, 4), 1 / 16)
    counts = torch.distributions.Poisson(100 * share).sample()
    error = (
        (counts - 100 * share).square().sum((2, 3)) / (100 * share).square().sum((2, 3))
    ).sqrt()
    assert noise_of(share, 100)["noise"][0] == pytest.approx(error.mean().item(), rel=0.05)
    assert noise_of(share, 100)["square"] == [1.0]


def test_a_profile_across_the_border_is_brought_to_the_middle():
    profile = torch.zeros(20)
    profile[[19, 0, 1]] = 1.0
    assert profile.roll(_to_middle(profile)).nonzero().flatten().tolist() == [9, 10, 11]


@pytest.mark.slow
def test_a_picture_shows_every_option_of_the_data(tmp_path):
    draw_seas(tmp_path / "seas.png", tmp_path / "data", size=12, steps=1, num_particles=30)
    assert (tmp_path / "seas.png").stat().st_size > 10_000
    assert len(list((tmp_path / "data").iterdir())) == len(SEAS)


class KilledError(Exception):
    """What a test raises in the middle of a training."""


def test_a_killed_training_goes_on_to_the_same_weights(samples, tmp_path, monkeypatch):
    def model() -> DriftUNet:
        torch.manual_seed(3)
        return DriftUNet(features=(2, 4))

    whole = model()
    train(whole, samples, 3, tmp_path / "whole", mass=0.1, progress=False)
    once = EveryGeometryOnce.set_epoch
    with monkeypatch.context() as patch:

        def killed(self: EveryGeometryOnce, epoch: int) -> None:
            if epoch == 2:
                raise KilledError
            once(self, epoch)

        patch.setattr(EveryGeometryOnce, "set_epoch", killed)
        with pytest.raises(KilledError):
            train(model(), samples, 3, tmp_path / "killed", mass=0.1, progress=False)
    resumed = model()
    wall, cpu = train(resumed, samples, 3, tmp_path / "killed", mass=0.1, progress=False)
    assert min(wall, cpu) > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def command(data: Path, out: Path, *more: str) -> list[str]:
    small = "--samples 2 --held-out 2 --size 16 --steps 3 --particles 50 --epochs 1 --features 2 4"
    return [
        *small.split(),
        "--seeds-others",
        "1",
        "--quiet",
        "--cache",
        str(data),
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.slow
def test_the_command_runs_from_nothing_and_is_not_repeated(data, tmp_path, monkeypatch, capsys):
    few = ("double", "double, mass kept", "double, seen all")
    monkeypatch.setattr(ocean, "CASES", {name: ocean.CASES[name] for name in few})
    text = ocean.main(command(data, tmp_path, "--seeds", "1"))
    assert text in capsys.readouterr().out
    result = json.loads((tmp_path / "ocean.json").read_text())
    assert set(ocean.CASES) | set(ocean.WITHOUT) | {"double, corrected"} == set(result["ways"])
    for way in result["ways"].values():
        assert set(way["runs"][0]) >= set(ocean.KINDS)
    for name in ("double, mass kept", "double, corrected", "semi-Lagrangian, corrected"):
        mass = result["ways"][name]["runs"][0]["sink"]["mass"]
        assert mass == pytest.approx([0, 0, 0], abs=1e-5), name
    for name in ("ocean.png", "ocean_errors.png", "ocean_intensity.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    with Image.open(tmp_path / "ocean.gif") as moving:
        assert moving.n_frames == 4
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/last.ckpt")}
    assert len(written) == len(ocean.CASES)
    two = ocean.main(command(data, tmp_path, "--seeds", "2"))
    assert "±" in two
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())
    other = {**ocean.CASES, few[1]: ocean.Case(block="single")}
    monkeypatch.setattr(ocean, "CASES", other)  # what differs is trained anew, and nothing else
    ocean.main(command(data, tmp_path, "--seeds", "1"))
    changed = {
        path.parent.name for path, then in written.items() if path.stat().st_mtime_ns != then
    }
    assert changed == {"double_mass_kept_0"}


def test_the_tables_tell_what_is_stored():
    run = {
        kind: {key: [0.25, 0.5] for key in ("error", "mass off", "peak", "square")}
        for kind in ("eddies", "sink")
    }
    ways = {
        "double": {"parameters": 1234, "runs": [{**run, "cpu": 10.0}, {**run, "cpu": 20.0}]},
        "nothing moves": {"runs": [run]},
    }
    kinds = {kind: {"noise": [0.1, 0.2, 0.3]} for kind in ("eddies", "sink")}
    result = {"options": {"steps": 2}, "ways": ways, "kinds": kinds}
    text = error_table(result)
    number = "0.25 ± 0.00 | 0.25 ± 0.00 | 0.25 ± 0.00 | 0.50 ± 0.00"
    assert f"| double | {number} | 50.0 ± 0.0 % | 1,234 | 15 s |" in text
    assert "| nothing moves | 0.25 | 0.25 | 0.25 | 0.50 | 50.0 % |  |  |" in text
    assert intensity_table(result).splitlines()[-1] == (
        "| double | 0.25 ± 0.00 | 0.25 ± 0.00 | 0.50 ± 0.00 | 0.50 ± 0.00 | 0.50 ± 0.00 |"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--held-out", "0"], "--held-out must be at least 1, got 0"),
        (["--unroll", "4", "--steps", "3"], "--unroll must be at most --steps 3, got 4"),
        (["--size", "36"], "--size must be a multiple of 8, got 36"),
    ],
)
def test_a_wrong_option_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        ocean.main(options)
    assert message in capsys.readouterr().err
