"""The recipe of MS-Net: model, loss, samples, running, resuming and reporting."""

import json
import math
from pathlib import Path

import pytest
import torch

from neurenix_ms.datasets import PorousConduction, effective_conductivity, porous
from neurenix_ms.recipes.demo.models import linear_field
from neurenix_ms.recipes.msnet import command as msnet
from neurenix_ms.recipes.msnet import data as msnet_data
from neurenix_ms.recipes.msnet.data import SampleSet
from neurenix_ms.recipes.msnet.models import (
    ConductionMSNet,
    deviation_of,
    levelled,
    network_inputs,
    potential_of,
)
from neurenix_ms.recipes.msnet.refinement import energy_conductivity, refined
from neurenix_ms.recipes.msnet.scoring import Laws, add_fitted, linear_start, predict, scored_start
from neurenix_ms.recipes.msnet.training import (
    NUM_MIRRORS,
    BatchesOfOneSize,
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


def test_batches_have_boxes_of_one_size_and_every_box_once():
    order = BatchesOfOneSize([(7, 3), (4, 1)], seed=5, num_mirrors=16)
    order.set_epoch(2)
    batches = list(order)
    assert len(batches) == len(order) == 7
    assert sorted(map(len, batches)) == [1, 1, 1, 1, 1, 3, 3]
    assert sorted(index % 11 for batch in batches for index in batch) == list(range(11))
    assert all(len({index % 11 < 7 for index in batch}) == 1 for batch in batches)
    assert list(order) == batches
    order.set_epoch(3)
    assert list(order) != batches


def test_steps_reduce_the_energy_of_the_error_down_to_the_solution(samples):
    batch = stacked(samples)
    pores, truth = batch["pores"].double(), batch["potential"].double()
    guess = (truth + 0.1 * torch.randn_like(truth)) * pores
    potentials = refined(guess, pores, [0, 1, 5, 20, 200])
    torch.testing.assert_close(potentials[0], guess)
    errors = torch.stack([energy(u - potentials[-1], pores) for u in potentials[:-1]])
    assert (errors.diff(dim=0) < 0).all()
    torch.testing.assert_close(potentials[-1], truth, atol=2e-3, rtol=0)
    flux = layer_fluxes(potentials[-1], pores)
    torch.testing.assert_close(flux, flux[:, :, :1].expand_as(flux))


def test_the_conductance_by_the_energy_is_too_large_by_the_energy_of_the_error(samples):
    batch = stacked(samples)
    pores = batch["pores"].double()
    solution = refined(batch["potential"].double(), pores, [300])[0]
    exact = effective_conductivity(solution, pores)
    torch.testing.assert_close(energy_conductivity(solution, pores), exact)
    wrong = 0.05 * torch.randn_like(pores) * pores
    apart = energy_conductivity(solution + wrong, pores) - exact
    torch.testing.assert_close(apart, energy(wrong, pores) * 16 / 16**2)


def test_steps_must_increase():
    channel = torch.ones(1, 1, 4, 2, 2)
    with pytest.raises(ValueError, match=r"increasing and at least 0, got \[5, 3\]"):
        refined(channel, channel, [5, 3])
    with pytest.raises(ValueError, match=r"increasing and at least 0, got \[-1\]"):
        refined(channel, channel, [-1])


def test_a_prediction_in_tiles_is_that_of_the_whole_box(samples):
    torch.manual_seed(1)
    model = ConductionMSNet(2, num_scales=2).eval()
    apart = predict(model, samples[0], 8) - predict(model, samples[0], None)
    assert apart.abs().max() < 1e-5


def test_laws_are_fitted_to_every_size_and_medium(samples):
    laws = Laws([samples], num_kinds=2)
    errors = laws.errors(SampleSet(samples))
    each, both = "Archie, a fit for each medium", laws.same(SampleSet(samples))
    assert both == "Archie, fitted at 16³"
    assert list(errors) == [both, each, "Bruggeman"]
    squares = {name: sum(math.log1p(off) ** 2 for off in errors[name]) for name in errors}
    assert squares[each] <= squares[both] <= squares["Bruggeman"]
    assert each not in laws.errors(SampleSet(samples, of_seen_kinds=False))


def test_a_correction_is_fitted_to_samples_of_the_training(samples):
    unseen, seen = {"a": SampleSet(samples[:3])}, {"b": SampleSet(samples[3:])}

    def of(one: SampleSet) -> dict[str, dict[str, list[float]]]:
        off = [2 * float(sample["D_rel"]) ** 0.5 - 1 for sample in one.samples]  # 2 D**1.5
        return {"flux": {"0": off}, "energy": {"5": off}}

    scores = {"a": of(unseen["a"]), "b": of(seen["b"])}
    add_fitted(scores, unseen, seen)
    assert scores["a"]["fitted"]["flux"]["0"] == pytest.approx([0, 0, 0], abs=2e-5)
    assert scores["a"]["fitted"]["energy"]["5"] == scores["a"]["fitted"]["flux"]["0"]


def test_the_truth_has_no_error_and_steps_from_the_linear_field_approach_it(samples):
    known = scored_start(lambda one: one["potential"][None], samples, [0])
    assert known["r2"] == known["r2_deviation"] == 1
    assert max(map(abs, known["flux"]["0"])) < 1e-4
    plain = scored_start(linear_start, samples, [0, 5, 60])["energy"]
    assert all(a > b > c for a, b, c in zip(plain["0"], plain["5"], plain["60"], strict=True))
    assert max(map(abs, plain["60"])) < 1e-3


class KilledError(Exception):
    """What a test raises in the middle of a training."""


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_weights(samples, tmp_path, monkeypatch):
    def model() -> ConductionMSNet:
        torch.manual_seed(3)
        return ConductionMSNet(2, num_scales=2)

    whole = model()
    train(whole, samples, 3, tmp_path / "whole", progress=False)
    once = BatchesOfOneSize.set_epoch
    with monkeypatch.context() as patch:

        def killed(self: BatchesOfOneSize, epoch: int) -> None:
            if epoch == 2:
                raise KilledError
            once(self, epoch)

        patch.setattr(BatchesOfOneSize, "set_epoch", killed)
        with pytest.raises(KilledError):
            train(model(), samples, 3, tmp_path / "killed", progress=False)
    resumed = model()
    wall, cpu = train(resumed, samples, 3, tmp_path / "killed", progress=False)
    assert min(wall, cpu) > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def command(data: Path, out: Path, *more: str) -> list[str]:
    small = "--samples 6 --large-samples 2 --held-out 6 --larger 2 --largest 0 --other 0 --size 16"
    few = ["--epochs", "1", "--seeds", "0"]
    return [*small.split(), *few, "--data", str(data), "--out", str(out), *more]


@pytest.mark.slow
def test_the_command_runs_from_nothing_and_is_not_repeated(data, tmp_path, capsys):
    wider = "--largest 1 --other 2 --generators fibers --seeds 0 1 --scales 1 --filters 2"
    more = wider.split()
    text = msnet.main(command(data, tmp_path, *more))
    assert text in capsys.readouterr().out
    assert (tmp_path / "msnet.md").read_text(encoding="utf-8").startswith(text)
    for name in ("msnet.png", "msnet_errors.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    for row in ("| 16³ | 6 |", "| 32³ | 2 |", "| 64³ | 1 |", "| 32³, fibers | 2 |"):
        assert row in text
    result = json.loads((tmp_path / "msnet.json").read_text("utf-8"))
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert len(result["runs"][1]["sets"]["32³, fibers"]["flux"]["0"]) == 2
    assert result["costs"]["sizes"]["64"]["difference"] < 1e-4
    assert "seed 1" in (tmp_path / "msnet_seeds.md").read_text("utf-8")
    assert "tiles of 32³" in (tmp_path / "msnet_costs.md").read_text("utf-8")
    kept = [tmp_path / name for name in ("plain/16.json", "seed_0/last.ckpt", "seed_0/16.json")]
    written = [path.stat().st_mtime_ns for path in kept]
    assert msnet.main(command(data, tmp_path, *more)) == text
    assert [path.stat().st_mtime_ns for path in kept] == written
    msnet.main(command(data, tmp_path, "--without", "level", "flux"))
    changed = [path.stat().st_mtime_ns != old for path, old in zip(kept, written, strict=True)]
    assert changed == [False, True, True]


@pytest.mark.slow
def test_samples_that_did_not_converge_are_counted_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(msnet_data, "KINDS", [("blobs", 4)])
    solve = porous.solved
    calls = []

    def hasty(*arguments):
        calls.append(None)
        return solve(*arguments) if len(calls) != 2 else None

    monkeypatch.setattr(porous, "solved", hasty)
    for _ in range(2):  # also when the samples are there already
        msnet.main(command(tmp_path / "data", tmp_path / "out"))
        assert "samples omitted, not converged: 1" in (tmp_path / "out/msnet.md").read_text()
    assert "taufactor did not converge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--samples", "1", "--samples must be at least 2, got 1"),
        ("--held-out", "1", "--held-out must be at least 2, got 1"),
        ("--larger", "1", "--larger must be at least 2, got 1"),
        ("--large-samples", "-1", "--large-samples must be at least 0, got -1"),
        ("--seeds", "-1", "--seeds must be at least 0, got -1"),
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
