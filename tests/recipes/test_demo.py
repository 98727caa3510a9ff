"""The demo on a few small samples: training, table, figure, and resuming."""

from pathlib import Path

import pytest
import torch

from neurenix_ms.datasets import PorousConduction, effective_conductivity
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.demo import command as demo
from neurenix_ms.recipes.demo.models import (
    linear_field,
    multiscale,
    network_inputs,
    single_scale,
)
from neurenix_ms.recipes.demo.report import ArchieLaw, Conductances, field_scores, pick, r2, table
from neurenix_ms.recipes.demo.training import (
    EveryGeometryOnce,
    MirroredConduction,
    conduction_loss,
    train,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the samples that all tests here use."""
    root = tmp_path_factory.mktemp("data")
    PorousConduction(root, 14, size=16, spatial_dims=2, progress=False)
    return root


@pytest.fixture
def samples(data: Path) -> list[dict[str, torch.Tensor]]:
    made = PorousConduction(data, 14, size=16, spatial_dims=2, progress=False)
    return [made[i] for i in range(len(made))]


def command(data: Path, out: Path, *more: str) -> list[str]:
    small = ["--samples", "14", "--size", "16", "--epochs", "2"]
    return [*small, "--data", str(data), "--out", str(out), *more]


def checkpoint(out: Path) -> Path:
    return out / "multiscale" / "last.ckpt"


@pytest.mark.slow
def test_the_demo_runs_from_nothing_and_is_not_repeated(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = demo.main(command(data, tmp_path))
    shown = capsys.readouterr().out
    assert text in shown
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith(text)
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    for row in ("R² of the potential", "error of D_rel, mean", "parameters", "training"):
        assert row in text

    written = checkpoint(tmp_path).stat().st_mtime_ns
    again = demo.main(command(data, tmp_path))
    assert checkpoint(tmp_path).stat().st_mtime_ns == written
    assert again == text

    demo.main(command(data, tmp_path, "--fresh"))
    assert checkpoint(tmp_path).stat().st_mtime_ns != written


@pytest.mark.slow
def test_another_configuration_starts_anew(data: Path, tmp_path: Path):
    demo.main(command(data, tmp_path))
    before = torch.load(checkpoint(tmp_path), weights_only=True)
    demo.main(command(data, tmp_path, "--epochs", "1"))
    after = torch.load(checkpoint(tmp_path), weights_only=True)
    assert (before["global_step"], after["global_step"]) == (4, 2)


class KilledError(Exception):
    """What a test raises in the middle of a training."""


def test_an_interrupted_training_resumes_to_the_same_weights(
    samples: list[dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def model() -> torch.nn.Module:
        torch.manual_seed(3)
        return multiscale()

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
    assert train(resumed, samples, 3, tmp_path / "killed", progress=False) > 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--samples", "3", "--samples must be at least 4, got 3"),
        ("--size", "8", "--size must be at least 16, got 8"),
        ("--epochs", "0", "--epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_raises(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        demo.main([option, value])
    assert message in capsys.readouterr().err


def test_both_networks_have_as_many_parameters():
    ours, plain = (parameter_table(model)[-1][1] for model in (multiscale(), single_scale()))
    assert abs(ours / plain - 1) < 0.02


@pytest.mark.parametrize("make", [multiscale, single_scale])
def test_a_prediction_is_right_on_the_end_faces(make, samples):
    model = make().eval()
    pores, distance = (torch.stack([one[key] for one in samples]) for key in ("pores", "distance"))
    x = network_inputs(pores, distance)
    with torch.no_grad():
        bent = model(x) - x[:, 2:3]
        x[:, 2, 0], x[:, 2, -1] = -0.5, 0.5  # as if the centers of the grid cells were on the faces
        on_faces = model(x)[:, :, [0, -1]]
    assert bent.abs().max() > 0
    torch.testing.assert_close(on_faces, x[:, 2:3, [0, -1]])


def test_what_is_said_about_solid_does_not_matter_to_the_loss(samples):
    data = MirroredConduction(samples)
    _, target = (x[None] for x in data[0])
    potential = torch.randn_like(target[:, :1])
    moved = potential + 3 * (1 - target[:, 1:])
    torch.testing.assert_close(conduction_loss(moved, target), conduction_loss(potential, target))
    assert conduction_loss(target[:, :1], target) == 0


def test_mirrored_geometries_conduct_as_much(samples):
    data = MirroredConduction(samples)
    assert len(data) == 4 * len(samples)
    found = []
    for mirror in range(4):
        x, target = data[5 + mirror * len(samples)]
        assert torch.equal(x[0], target[1])
        assert torch.equal(x[2], linear_field((16, 16))[0, 0])
        found.append(effective_conductivity(target[None, :1], target[None, 1:]))
    torch.testing.assert_close(torch.cat(found), samples[5]["D_rel"].expand(4))


def test_an_epoch_has_every_geometry_once_in_its_own_order():
    sampler = EveryGeometryOnce(10, seed=1)
    first = list(sampler)
    assert sorted(i % 10 for i in first) == list(range(10))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("scale", "exponent"), [(0.7, 1.5), (1.0, 2.3)])
def test_the_fit_recovers_an_exact_law(scale: float, exponent: float):
    porosity = torch.linspace(0.2, 0.9, 12)
    law = ArchieLaw.fit(porosity, scale * porosity**exponent, with_scale=scale != 1)
    assert (law.scale, law.exponent) == pytest.approx((scale, exponent), rel=1e-5)
    torch.testing.assert_close(law(porosity), scale * porosity**exponent)


def test_a_perfect_field_has_perfect_scores_and_the_mean_explains_nothing(samples):
    truth, pores = (torch.stack([one[key] for one in samples]) for key in ("potential", "pores"))
    scores = field_scores(truth, truth, pores)
    assert list(scores.values()) == ["1.000", "1.000", "0.0 %", "0.0 %"]
    mean = truth[pores > 0].mean().expand_as(truth)
    assert r2(mean, truth, pores) == pytest.approx(0, abs=1e-5)


def test_errors_are_relative_to_the_truth():
    off = Conductances.of(torch.tensor([0.2, 0.1, 0.4]), torch.tensor([0.1, 0.1, 0.5]))
    assert (off.mean, off.median) == pytest.approx((0.4, 0.2))


def test_the_samples_shown_are_spread_over_the_conductances():
    assert pick(torch.tensor([0.5, 0.1, 0.3, 0.2, 0.4, 0.6])) == [3, 4, 5]


def test_a_table_has_a_row_for_everything_that_any_method_has():
    lines = table({"ours": {"a": "1"}, "law": {"a": "2", "b": "3"}}).splitlines()
    assert [line.count("|") for line in lines] == [4] * 4
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split("|")[2].strip() == ""
