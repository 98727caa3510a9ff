"""The recipe of permeability: media, samples, model, loss, laws and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.recipes.permeability import command, data
from neurenix_ms.recipes.permeability.data import (
    KINDS,
    boxes,
    largest_component,
    periodic_distance,
    solved_box,
)
from neurenix_ms.recipes.permeability.laws import (
    CONDUCTION,
    KOZENY_CARMAN,
    kozeny_carman_constant,
    law_predictions,
    true_permeability,
)
from neurenix_ms.recipes.permeability.models import FlowMSNet, equal_flux, surface
from neurenix_ms.recipes.permeability.stokes import StaggeredGrid
from neurenix_ms.recipes.permeability.training import (
    NUM_MIRRORS,
    FlowLoss,
    TurnedFlow,
    hydraulic_radii,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(cache: Path) -> list[dict[str, torch.Tensor]]:
    return boxes(cache, len(KINDS), 16, 0, progress=False)


def test_boxes_are_those_of_their_seed_and_number(samples):
    again = solved_box(1, 16, 0)
    for name, value in samples[1].items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(samples[1]["pores"], solved_box(1, 16, 1)["pores"])


def test_the_velocity_of_a_box_has_its_permeability_along_all_axes(samples):
    for one in samples:
        assert (one["permeability"] > 0).all()
        found = one["velocity"].flatten(1).mean(1)
        torch.testing.assert_close(found, one["permeability"], rtol=1e-5, atol=0)
        assert not one["velocity"][:, one["pores"] == 0].any()
        assert torch.equal(one["distance"] > 0, one["pores"] > 0)


def test_only_the_largest_part_of_the_pores_is_kept_across_the_faces():
    pores = np.zeros((6, 6, 6), dtype=bool)
    pores[0, 0, 0] = pores[5, 0, 0] = pores[0, 5, 0] = True  # one part, across two faces
    pores[3, 3, 2:4] = True
    kept = largest_component(pores)
    assert kept.sum() == 3
    assert kept[0, 5, 0]


def test_a_box_that_nothing_flows_through_is_drawn_again_and_none_raises(monkeypatch):
    monkeypatch.setattr(data, "LEAST_CONDUCTIVITY", 1.0)
    monkeypatch.setattr(data, "MAX_DRAWS", 2)
    with pytest.raises(RuntimeError, match=r"one of 2 media of \('blobs', 4\) with 8 voxels"):
        solved_box(0, 8, 0)


def test_distances_are_periodic():
    pores = np.ones((8, 4, 4), dtype=bool)
    pores[0] = False
    distance = periodic_distance(pores)[:, 0, 0]
    assert distance.tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    rolled = periodic_distance(np.roll(pores, 3, 0))[:, 0, 0]
    assert rolled.tolist() == np.roll(distance, 3).tolist()


def test_the_surface_of_a_cube_is_counted():
    pores = torch.ones(2, 8, 8, 8)
    pores[0, 2:4, 2:4, 2:4] = 0
    assert surface(pores).tolist() == [24 / 512, 0]
    one = {"pores": pores[0]}
    assert hydraulic_radii([one]).tolist() == pytest.approx([504 / 24])


def test_turned_boxes_have_the_flow_of_solved_turned_media(samples):
    turned = TurnedFlow(samples, 0.2)
    assert len(turned) == NUM_MIRRORS * turned.num_geometries == 16 * 3 * len(samples)
    seen = set()
    for way in range(NUM_MIRRORS):
        x, target = turned[1 * len(samples) + 2 + way * turned.num_geometries]  # axis 1 of box 2
        assert torch.equal(x[0], target[1])
        mean = float(target[0].mean()) * turned.units[2]
        assert mean == pytest.approx(float(samples[2]["permeability"][1]), rel=1e-5)
        seen.add(tuple(x[0].flatten().tolist()))
    assert len(seen) == NUM_MIRRORS
    x, target = turned[1 * len(samples) + 2 + 13 * turned.num_geometries]
    flow = StaggeredGrid(x[0].numpy() > 0).flow(0, 1e-6)
    expected = target[0].numpy() * turned.units[2]
    assert flow.velocity[0] == pytest.approx(expected, abs=2e-3 * float(expected.max()))


def test_an_equal_flux_keeps_the_mean_and_the_true_field(samples):
    pores = torch.stack([one["pores"] for one in samples])[:, None].double()
    guess = torch.randn_like(pores)
    fixed = equal_flux(guess, pores)
    flux = fixed.flatten(3).sum(3)
    torch.testing.assert_close(flux, flux[:, :, :1].expand_as(flux))
    torch.testing.assert_close(flux.mean(2), (guess * pores).flatten(3).sum(3).mean(2))
    truth = torch.stack([one["velocity"][0] for one in samples])[:, None].double()
    apart = (equal_flux(truth, pores) - truth).abs().max() / truth.max()
    assert apart < 1e-3
    wrong = truth + 0.1 * guess * pores
    assert (equal_flux(wrong, pores) - truth).norm() < (wrong - truth).norm()


def test_the_network_is_periodic():
    torch.manual_seed(0)
    model = FlowMSNet(2, num_scales=2)
    pores = (torch.rand(1, 1, 8, 8, 8) < 0.7).float()
    x = torch.cat([pores, pores * torch.rand_like(pores)], dim=1)
    with torch.no_grad():
        shifted = model(x.roll((2, 4, 6), (2, 3, 4)))[-1]
        expected = model(x)[-1].roll((2, 4, 6), (2, 3, 4))
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=1e-4)


def test_the_truth_has_no_loss_and_a_wrong_permeability_has(samples):
    _, target = TurnedFlow(samples, 0.2)[0]
    target = target[None]
    loss = FlowLoss()
    assert loss([target[:, :1]], target) < 1e-10
    doubled = loss([2 * target[:, :1]], target)
    # relative error 1 of the permeability, with its weight, and that of the field
    inside = target[:, :1][target[:, 1:] > 0]
    field = inside.square().mean() / inside.var()
    torch.testing.assert_close(doubled, field + 0.5)


def test_laws_are_exact_for_media_that_follow_them(samples):
    radius = hydraulic_radii(samples).double()
    porosity = torch.stack([one["pores"].mean() for one in samples]).double()
    follow = [
        one | {"permeability": (0.3 * porosity[i] * radius[i] ** 2).expand(3)}
        for i, one in enumerate(samples)
    ]
    assert kozeny_carman_constant(follow) == pytest.approx(0.3)
    found = law_predictions(follow, follow, [radius for _, radius in KINDS])
    truth = true_permeability(follow)
    torch.testing.assert_close(found[KOZENY_CARMAN], truth)
    conducting = [
        one | {"permeability": 0.7 * radius[i] ** 2 * one["conductivity"].double()}
        for i, one in enumerate(samples)
    ]
    found = law_predictions(conducting, conducting, [radius for _, radius in KINDS])
    torch.testing.assert_close(found[CONDUCTION], true_permeability(conducting))
    assert not torch.allclose(found[KOZENY_CARMAN], true_permeability(conducting), rtol=0.02)


@pytest.mark.slow
def test_the_command_runs_from_nothing_and_resumes(cache, tmp_path, capsys):
    small = "--samples 4 --held-out 2 --size 16 --epochs 1 --filters 1 --scales 2 --seeds 0 1"
    arguments = [*small.split(), "--cache", str(cache), "--out", str(tmp_path)]
    text = command.main(arguments)
    assert text in capsys.readouterr().out
    assert (tmp_path / "permeability.md").read_text(encoding="utf-8").startswith(text)
    assert (tmp_path / "permeability.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "permeability.json").read_text("utf-8"))
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert np.shape(result["runs"][1]["predicted"]) == np.shape(result["true"]) == (2, 3)
    for name in ("MS-Net", KOZENY_CARMAN, CONDUCTION):
        assert f"| {name} |" in text
    kept = tmp_path / "seed_1/last.ckpt"
    written = kept.stat().st_mtime_ns
    assert command.main(arguments) == text
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--samples", "3", "--samples must be at least 4, got 3"),
        ("--held-out", "1", "--held-out must be at least 2, got 1"),
        ("--epochs", "0", "--epochs must be at least 1, got 0"),
        ("--filters", "0", "--filters must be at least 1, got 0"),
        ("--scales", "5", "--scales must be between 1 and 4, got 5"),
        ("--size", "20", "--size must be a multiple of 8 and at least 16, got 20"),
    ],
)
def test_a_wrong_option_raises(option, value, message, capsys):
    with pytest.raises(SystemExit):
        command.main([option, value])
    assert message in capsys.readouterr().err
