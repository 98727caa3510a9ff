"""Training of all strides and their selection: what is learnt, resumed, measured and refused."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping import (
    HierarchicalTimeStepper,
    TimeStepper,
    fit_hierarchy,
    select_strides,
)
from neurenix_ms.timestepping.banks import OneByOne, Stacked, can_be_stacked
from neurenix_ms.timestepping.shortcuts import fitted_shortcuts
from neurenix_ms.timestepping.windows import WindowSource


def rotation(num_samples, num_rows=60, dt=0.1, dtype=torch.float32):
    """Harmonic oscillations, whose flow over any stride is linear."""
    t = dt * torch.arange(num_rows, dtype=dtype)
    phase, radius = torch.rand(2, num_samples, 1, dtype=dtype) + 0.5
    return torch.stack([radius * (t + 6 * phase).sin(), radius * (t + 6 * phase).cos()], dim=-1)


def fit(step_sizes=(1, 8), data=None, **options):
    data = rotation(20) if data is None else data
    options = {
        "validation": data[-4:],
        "num_iterations": 60,
        "batch_size": 32,
        "check_every": 20,
        "progress": False,
    } | options
    network = options.pop("network", lambda: MLP(2, 2, []))
    return fit_hierarchy(data[:-4], 0.1, step_sizes, network, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("windows", ["all", "start"])
def test_linear_networks_learn_a_rotation(horizon, windows):
    model = fit(
        horizon=horizon, windows=windows, num_iterations=400, learning_rate=0.1, check_every=100
    )
    held_out = rotation(5)
    with torch.no_grad():
        error = (model.forecast(held_out[:, 0], 59) - held_out[:, 1:]).abs().max()
    assert error < 1e-3


def test_stacked_and_one_by_one_train_the_same_networks():
    def run(stacked):
        torch.manual_seed(3)
        data = rotation(20, dtype=torch.float64)
        return fit((1, 2, 4), data, network=lambda: MLP(2, 2, [8, 8]), stacked=stacked, horizon=2)

    torch.testing.assert_close(weights(run(True)), weights(run(False)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", None])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, schedule, stacked, monkeypatch):
    from neurenix_ms.timestepping import run as module

    data = rotation(20)

    def run(**options):
        torch.manual_seed(5)
        return fit(data=data, schedule=schedule, stacked=stacked, **options)

    whole = run()
    look = module.TrainingRun._validate

    def killed(self, *args):
        if self.iteration == 40:
            raise KeyboardInterrupt
        look(self, *args)

    monkeypatch.setattr(module.TrainingRun, "_validate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "run.ckpt")
    monkeypatch.undo()
    resumed = run(checkpoint=tmp_path / "run.ckpt")
    assert torch.equal(weights(resumed), weights(whole))
    steps = []
    monkeypatch.setattr(module.TrainingRun, "_step", lambda *_: steps.append(1))
    assert torch.equal(weights(run(checkpoint=tmp_path / "run.ckpt")), weights(whole))
    assert not steps


def test_the_best_weights_come_back_and_patience_ends_a_run(monkeypatch):
    from neurenix_ms.timestepping import run as module

    seen = []
    look = module.TrainingRun._validate

    def noted(self, *args):
        look(self, *args)
        seen.append((self.idle, self.best_errors.clone()))

    monkeypatch.setattr(module.TrainingRun, "_validate", noted)
    # a learning rate so large that it soon gets worse for good
    fit(learning_rate=0.5, num_iterations=20_000, patience=3, schedule=None, check_every=5)
    assert seen[-1][0] == 3
    assert len(seen) < 4000
    assert (seen[-1][1] <= seen[0][1]).all()


def test_windows_lie_on_the_trajectories_and_short_ones_have_fewer_strides():
    rows = torch.arange(2 * 20.0).view(2, 20, 1)  # sample s, row t: 20 s + t
    source = WindowSource(rows, [1, 3, 9], horizon=4, windows="all")
    windows = source.drawn(500, torch.Generator().manual_seed(0))
    assert windows.shape == (3, 500, 5, 1)
    assert source.lengths.tolist() == [4, 4, 2]
    assert (source.weights.sum(1) == 1).all()
    assert source.weights[2].tolist() == [0.5, 0.5, 0, 0]
    for k, (stride, length) in enumerate([(1, 4), (3, 4), (9, 2)]):
        inside = windows[k, :, : length + 1, 0]
        assert (inside.diff(dim=1) == stride).all()
        assert (inside[:, 0] // 20 == inside[:, -1] // 20).all()
        assert len(inside[:, 0].unique()) == 2 * (20 - stride * length)  # every place is drawn
    starts = WindowSource(rows, [1, 3], 2, "start").drawn(50, torch.Generator().manual_seed(0))
    assert set(starts[:, :, 0].unique().tolist()) == {0.0, 20.0}


def test_a_convolution_learns_a_shift_of_a_field():
    x = torch.arange(16) / 16 * 2 * torch.pi
    t = torch.arange(12)[:, None] * 2 * torch.pi / 16
    phases = torch.rand(8, 1, 1) * 6
    waves = (x + t + phases).sin().unsqueeze(2)  # (N, T, 1, S)
    model = fit_hierarchy(
        waves[:6],
        1.0,
        [1, 2],
        lambda: nn.Conv1d(1, 1, 5, padding=2, padding_mode="circular"),
        validation=waves[6:],
        horizon=2,
        num_iterations=60,
        batch_size=16,
        learning_rate=5e-2,
        progress=False,
    )
    with torch.no_grad():
        states = model.eval().forecast(waves[6:, 0], 4)
    assert states.shape == (2, 4, 1, 16)
    still = (waves[6:, :1] - waves[6:, 1:5]).square().mean()
    assert (states - waves[6:, 1:5]).square().mean() < 0.1 * still


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("windows", ["all", "start"])
def test_a_shortcut_learns_linear_dynamics_exactly(stacked, windows):
    data = rotation(40, dtype=torch.float64)
    model = fit(
        data=data,
        windows=windows,
        stacked=stacked,
        num_iterations=1,
        network=lambda: MLP(2, 2, [8], shortcut=True),
    )
    error = model.forecast(data[:, 0], 59) - data[:, 1:]
    assert error.abs().max() < 1e-5  # a second of training is not needed
    network = model.coarse_first()[0].network.network
    assert all(p.requires_grad for p in network.parameters())


def test_layers_learn_what_the_shortcut_leaves():
    t = torch.rand(30, 1) + 0.05 * torch.arange(60)
    data = torch.stack([t.sin(), t.cos(), (2 * t).sin().abs()], dim=-1)
    errors = []
    for num_iterations in (1, 300):
        model = fit(
            data=data,
            num_iterations=num_iterations,
            learning_rate=1e-2,
            network=lambda: MLP(3, 3, [32], shortcut=True),
        )
        change = model.only([8]).forecast(data[:, 0], 8)[:, -1] - data[:, 8]
        errors.append(change.square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_the_shortcut_alone_is_kept_if_training_does_not_improve_it():
    data = rotation(20, dtype=torch.float64)
    model = fit(
        data=data, learning_rate=10.0, network=lambda: MLP(2, 2, [8], shortcut=True), stacked=False
    )
    last = model.coarse_first()[0].network.network.layers[-1]
    assert last.weight.abs().max() == 0


def test_a_killed_run_with_shortcuts_resumes(tmp_path):
    data = rotation(12)
    options = {"data": data, "network": lambda: MLP(2, 2, [4], shortcut=True)}
    torch.manual_seed(0)
    whole = fit(**options)
    torch.manual_seed(0)
    fit(**options, checkpoint=tmp_path / "run.ckpt")
    torch.manual_seed(1)
    again = fit(**options, checkpoint=tmp_path / "run.ckpt")
    torch.testing.assert_close(weights(again), weights(whole))


def test_a_ridge_keeps_the_shortcut_of_unrelated_states_small():
    noise = torch.randn(1, 40, 30, dtype=torch.float64)
    zero, one = torch.zeros(30), torch.ones(1, 30)
    fitted = fitted_shortcuts(noise, [1], "all", zero, one[0], one)
    # the best prediction of the next state is the mean, a change of minus the state
    x = noise[0, :-1] - noise[0, :-1].mean(dim=0)
    y = noise[0].diff(dim=0)
    exact = torch.linalg.lstsq(x, y - y.mean(dim=0)).solution
    wrong = [(weight + torch.eye(30)).norm() for weight in (fitted.weight[0], exact)]
    assert wrong[0] < 0.8 * wrong[1]
    assert (fitted.rest > 0).all()


def test_networks_of_other_kinds_are_not_stacked():
    assert can_be_stacked([MLP(2, 2, [4]), MLP(2, 2, [4])])
    assert not can_be_stacked([MLP(2, 2, [4])])
    assert not can_be_stacked([MLP(2, 2, [4]), MLP(2, 2, [5])])
    assert not can_be_stacked([nn.Linear(2, 2)] * 2)
    assert not can_be_stacked([MLP(2, 2, [4], act=nn.Softplus)] * 2)


def test_trained_shortcuts_are_not_stacked():
    networks = [MLP(2, 2, [4], shortcut=True) for _ in range(2)]
    assert not can_be_stacked(networks)
    for network in networks:
        network.linear.requires_grad_(False)
    assert can_be_stacked(networks)


def test_both_banks_give_what_the_networks_give():
    networks = [MLP(2, 3, [4, 5], act="tanh") for _ in range(3)]
    x = torch.randn(3, 7, 2)
    expected = torch.stack([network(y) for network, y in zip(networks, x, strict=True)])
    for bank in (OneByOne(copy.deepcopy(networks)), Stacked(copy.deepcopy(networks))):
        torch.testing.assert_close(bank(x), expected)
        with torch.no_grad():
            for tensor in bank.tensors(1):
                tensor.zero_()
        assert (bank(x)[1] == 0).all()
        assert all((p == 0).all() for p in bank.unpacked()[1].parameters())
        torch.testing.assert_close(bank(x)[2], expected[2])


class Off:
    """The flow of dx/dt = 1, off by `error` per step, as a plain callable."""

    calls = 0

    def __init__(self, step_size, error=0.0):
        self.step_size = step_size
        self.error = error

    def __call__(self, x):
        Off.calls += len(x)
        return x + self.step_size + self.error


LINE = torch.arange(65.0, dtype=torch.float64).view(1, 65, 1)


def chosen(steppers, tolerance=0.0):
    return select_strides(HierarchicalTimeStepper(steppers), LINE, tolerance=tolerance)


class Decay:
    """The flow of dx/dt = -x / 10, off by a factor of `1 + error`."""

    def __init__(self, step_size, error=0.0):
        self.step_size = step_size
        self.factor = (1 + error) * math.exp(-step_size / 10)

    def __call__(self, x):
        return self.factor * x


def test_strides_that_spoil_the_forecast_are_dropped():
    steppers = [Decay(32, 0.5), Decay(16, 1e-4), Decay(4, 1e-4), Decay(1, 0.1)]
    selection = select_strides(HierarchicalTimeStepper(steppers), (-LINE / 10).exp())
    assert selection.hierarchy.step_sizes == [16, 4]
    tried = [strides for strides, _ in selection.table]
    assert tried == [(32, 16, 4, 1), (16, 4, 1), (4, 1), (16, 4), (16,)]


def test_every_score_is_that_of_the_forecast():
    steppers = [Off(16, 0.01), Off(5, 0.02), Off(2, -0.01), Off(1, 0.1)]
    selection = chosen(steppers, tolerance=100)
    for strides, error in selection.table:
        model = HierarchicalTimeStepper([s for s in steppers if s.step_size in strides])
        expected = (model.forecast(LINE[:, 0], 64) - LINE[:, 1:]).square().mean().item()
        assert error == pytest.approx(expected)


def test_fewer_strides_are_preferred_at_equal_error_and_within_the_tolerance():
    assert chosen([Off(8), Off(4), Off(1)]).hierarchy.step_sizes == [1]
    steppers = [Off(8, 0.1), Off(4, 0.1)]
    strict, loose = chosen(steppers), chosen(steppers, tolerance=10)
    assert strict.hierarchy.step_sizes == [8]
    assert loose.hierarchy.step_sizes == [4]


def test_states_of_coarse_strides_are_computed_once_for_all_finer_sets():
    Off.calls = 0
    selection = chosen([Off(16, 1e-6), Off(4, 1e-3), Off(1, 1e-2)], tolerance=0)
    assert selection.hierarchy.step_sizes == [16]
    # the sets (16, 4, 1), (4, 1) from the start, and no more for (16, 4) and (16,)
    assert Off.calls <= 64 + 64 + 12


@pytest.mark.parametrize("progress", [True])
def test_a_bar_shows_the_progress(progress, capsys):
    fit(progress=progress, num_iterations=20)
    assert "20/20" in capsys.readouterr().err


GOOD = torch.zeros(2, 30, 2)


def every_second():
    """A factory of MLPs, of which every second one has a shortcut."""
    turns = itertools.cycle([False, True])
    return lambda: MLP(2, 2, [4], shortcut=next(turns))


def nan_in_the_second():
    data = GOOD.clone()
    data[1, 3] = torch.nan
    return data


def other_checkpoint(tmp_path):
    fit(checkpoint=tmp_path / "a.ckpt", num_iterations=20)
    return tmp_path / "a.ckpt"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: fit([1, 1]), r"step_sizes must be different, got \[1, 1\]"),
        (lambda p: fit([0, 1]), r"step_sizes\[0\] must be at least 1, got 0"),
        (lambda p: fit([]), r"step_sizes must have at least 1 entry, got \[\]"),
        (
            lambda p: fit([1, 60]),
            "trajectories must have more rows than the largest step size 60, got 60",
        ),
        (
            lambda p: fit([1, 30], validation=GOOD),
            "validation must have more rows than the largest step size 30, got 30",
        ),
        (
            lambda p: fit(validation=torch.zeros(2, 30, 3)),
            r"validation must have states of shape \(2,\) like the trajectories, got \(3,\)",
        ),
        (
            lambda p: fit(validation=nan_in_the_second()),
            "validation must be finite, got NaN or inf in sample 1",
        ),
        (
            lambda p: fit(data=torch.full((6, 30, 2), torch.nan)),
            "trajectories must be finite, got NaN or inf in sample 0",
        ),
        (
            lambda p: fit(data=torch.zeros(9, 30)),
            r"trajectories must be \(N, T, \*D\), got shape \(5, 30\)",
        ),
        (lambda p: fit(horizon=0), "horizon must be at least 1, got 0"),
        (lambda p: fit(windows="end"), r"windows must be one of \['all', 'start'\], got 'end'"),
        (lambda p: fit(schedule="step"), "schedule must be one of .*, got 'step'"),
        (
            lambda p: fit_hierarchy(GOOD, 0, [1], lambda: MLP(2, 2), validation=GOOD),
            "dt must be positive, got 0",
        ),
        (
            lambda p: fit(network=lambda: nn.Linear(2, 2), stacked=True),
            "stacked=True needs several MLPs of the same widths, got others",
        ),
        (lambda p: fit(network=every_second()), "all networks or none must .* got 1 of 2"),
        (
            lambda p: fit(data=torch.randn(9, 60, 2, 2), network=lambda: MLP(2, 2, shortcut=True)),
            r"shortcuts are for vectors, trajectories \(N, T, D\), got \(5, 60, 2, 2\)",
        ),
        (
            lambda p: fit(checkpoint=other_checkpoint(p), num_iterations=21),
            r"a\.ckpt must be the checkpoint of a run with num_iterations = 21, got 20",
        ),
        (lambda p: chosen([Off(1)], tolerance=-1), "tolerance must be at least 0, got -1"),
        (
            lambda p: select_strides(HierarchicalTimeStepper([Off(1)]), LINE[:, :1]),
            r"two rows or more, got \(1, 1, 1\)",
        ),
        (
            lambda p: select_strides(HierarchicalTimeStepper([Off(1)]), nan_in_the_second()),
            "validation must be finite, got NaN or inf in sample 1",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.ckpt must be a checkpoint of fit_hierarchy, got"):
        fit(checkpoint=tmp_path / "a.ckpt")


def test_the_result_is_steppers_of_the_networks_made():
    model = fit((2, 4))
    assert all(isinstance(stepper, TimeStepper) for stepper in model.steppers)
    assert model.step_sizes == [4, 2]
