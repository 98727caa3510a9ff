"""The recipe of MS-Net: model, loss, samples, running, resuming and reporting."""

from pathlib import Path

import pytest
import torch

from neurenix_ms.datasets import PorousConduction, effective_conductivity, porous
from neurenix_ms.recipes.demo.models import linear_field
from neurenix_ms.recipes.fitting import EveryGeometryOnce
from neurenix_ms.recipes.msnet import command as msnet
from neurenix_ms.recipes.msnet.models import (
    ConductionMSNet,
    deviation_of,
    levelled,
    network_inputs,
    potential_of,
)
from neurenix_ms.recipes.msnet.training import (
    NUM_MIRRORS,
    ConductionLoss,
    TurnedConduction,
    energy,
    train,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the samples that all tests here use."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(data: Path) -> list[dict[str, torch.Tensor]]:
    made = PorousConduction(data, 6, 16, tolerance=1e-4, progress=False)
    return [made[i] for i in range(len(made))]


def stacked(samples) -> dict[str, torch.Tensor]:
    return {key: torch.stack([one[key] for one in samples]) for key in samples[0]}


def layer_fluxes(potential: torch.Tensor, pores: torch.Tensor) -> torch.Tensor:
    open_faces = pores[:, :, 1:] * pores[:, :, :-1]
    return (potential.diff(dim=2) * open_faces).flatten(3).sum(3)


def test_a_levelled_guess_passes_the_same_flux_through_all_layers(samples):
    pores = stacked(samples)["pores"].double()
    flux = layer_fluxes(levelled(torch.randn_like(pores), pores), pores)
    torch.testing.assert_close(flux, flux[:, :, :1].expand_as(flux))


def test_levelling_comes_closer_to_the_solution_and_leaves_it_alone(samples):
    batch = stacked(samples)
    pores, truth = batch["pores"], batch["potential"]
    torch.testing.assert_close(levelled(truth, pores), truth, atol=2e-3, rtol=0)
    guess = truth + 0.05 * torch.randn_like(truth)
    error = energy(guess * pores - truth, pores)
    assert (energy(levelled(guess, pores) - truth, pores) < error).all()


def test_an_empty_box_is_levelled_to_the_linear_field():
    box = torch.ones(1, 1, 6, 3, 3)
    linear = linear_field((6, 3, 3))
    torch.testing.assert_close(levelled(torch.zeros_like(box), box), linear)


def test_a_box_without_pores_has_no_potential_and_no_nan():
    solid = torch.zeros(1, 1, 16, 16, 16)
    assert torch.equal(levelled(torch.randn_like(solid), solid), solid)
    deviations = ConductionMSNet(2)(network_inputs(solid, solid))
    assert torch.equal(potential_of(deviations[-1], solid), solid)


def test_deviation_and_potential_are_inverse(samples):
    batch = stacked(samples)
    deviation = deviation_of(batch["potential"], batch["pores"])
    torch.testing.assert_close(potential_of(deviation, batch["pores"]), batch["potential"])


def test_boxes_of_all_sizes_look_the_same_far_from_their_faces():
    small, large = (torch.ones(1, 1, n, 2, 2) for n in (48, 96))
    seen = [network_inputs(box, box)[0, 2, :, 0, 0] for box in (small, large)]
    torch.testing.assert_close(seen[0][:8], seen[1][:8], atol=1e-4, rtol=0)
    assert seen[1][40:56].abs().max() < 1e-4
    assert seen[0][0] < -0.8
    assert seen[0][-1] > 0.8


def test_the_truth_has_no_loss_and_solid_does_not_count(samples):
    batch = stacked(samples)
    target = torch.cat([batch["potential"], batch["pores"]], dim=1)
    deviation = deviation_of(batch["potential"], batch["pores"])
    loss = ConductionLoss()
    assert loss([deviation], target) < 1e-6
    wrong = deviation + 0.1 * torch.randn_like(deviation)
    spoiled = wrong + 5 * (1 - batch["pores"])
    assert loss([wrong], target) > 0.01
    torch.testing.assert_close(loss([spoiled], target), loss([wrong], target))


def test_turned_geometries_conduct_as_much_and_are_all_different(samples):
    data = TurnedConduction(samples)
    assert len(data) == NUM_MIRRORS * len(samples)
    seen = set()
    for way in range(NUM_MIRRORS):
        x, target = data[2 + way * len(samples)]
        assert torch.equal(x[0], target[1])
        assert torch.equal(x, network_inputs(x[None, :1], 4 * x[None, 1:2])[0])
        conductance = effective_conductivity(target[None, :1], target[None, 1:])
        torch.testing.assert_close(conductance[0], samples[2]["D_rel"])
        seen.add(tuple(target[1].flatten().tolist()))
    assert len(seen) == NUM_MIRRORS


class KilledError(Exception):
    """What a test raises in the middle of a training."""


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_weights(samples, tmp_path, monkeypatch):
    def model() -> ConductionMSNet:
        torch.manual_seed(3)
        return ConductionMSNet(2, num_scales=2)

    whole = model()
    train(whole, samples, 3, tmp_path / "whole", progress=False)
    once = EveryGeometryOnce.set_epoch
    with monkeypatch.context() as patch:

        def killed(self: EveryGeometryOnce, epoch: int) -> None:
            if epoch == 2:
                raise KilledError
            once(self, epoch)

        patch.setattr(EveryGeometryOnce, "set_epoch", killed)
        with pytest.raises(KilledError):
            train(model(), samples, 3, tmp_path / "killed", progress=False)
    resumed = model()
    wall, cpu = train(resumed, samples, 3, tmp_path / "killed", progress=False)
    assert min(wall, cpu) > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def command(data: Path, out: Path, *more: str) -> list[str]:
    small = ["--samples", "6", "--held-out", "6", "--larger", "2", "--size", "16", "--epochs", "1"]
    return [*small, "--data", str(data), "--out", str(out), *more]


@pytest.mark.slow
def test_the_command_runs_from_nothing_and_is_not_repeated(data, tmp_path, capsys):
    text = msnet.main(command(data, tmp_path))
    assert text in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith(text)
    assert (tmp_path / "msnet.png").stat().st_size > 10_000
    for row in ("16³: R² of the potential", "32³: error of D_rel, mean", "not converged"):
        assert row in text
    written = (tmp_path / "last.ckpt").stat().st_mtime_ns
    assert msnet.main(command(data, tmp_path)) == text
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == written
    msnet.main(command(data, tmp_path, "--without", "level", "flux"))
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns != written


@pytest.mark.slow
def test_samples_that_did_not_converge_are_counted_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(msnet, "KINDS", [("blobs", 4)])
    solve = porous.solved
    calls = []

    def hasty(*arguments):
        calls.append(None)
        return solve(*arguments) if len(calls) != 2 else None

    monkeypatch.setattr(porous, "solved", hasty)
    for _ in range(2):  # also when the samples are there already
        text = msnet.main(command(tmp_path / "data", tmp_path / "out"))
        row = next(line for line in text.splitlines() if "not converged" in line)
        assert row.split("|")[2].strip() == "1"
    assert "taufactor did not converge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--samples", "1", "--samples must be at least 2, got 1"),
        ("--held-out", "1", "--held-out must be at least 2, got 1"),
        ("--larger", "1", "--larger must be at least 2, got 1"),
        ("--epochs", "0", "--epochs must be at least 1, got 0"),
        ("--scales", "5", "--scales must be between 1 and 4, got 5"),
        ("--size", "20", "--size must be a multiple of 8 and at least 16, got 20"),
        ("--size", "8", "--size must be a multiple of 8 and at least 16, got 8"),
    ],
)
def test_a_wrong_option_raises(option, value, message, capsys):
    with pytest.raises(SystemExit):
        msnet.main([option, value])
    assert message in capsys.readouterr().err
