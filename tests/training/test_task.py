"""Tasks: logging, training, and resuming to the same result."""

import functools
import importlib
import logging
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")

from neurenix_ms import FiLM, UNet  # noqa: E402
from neurenix_ms.training import MultiScaleTask, RegressionTask, SegmentationTask  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Dicts(torch.utils.data.Dataset):
    """The samples of a data set of pairs, as dicts."""

    def __init__(self, pairs, input_key="input", target_key="target"):
        self.pairs, self.keys = pairs, (input_key, target_key)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return dict(zip(self.keys, self.pairs[index], strict=True))


class TwoScales(nn.Module):
    """Return a fine and a coarse output."""

    def __init__(self, finest_first=True):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 1)
        self.finest_first = finest_first

    def forward(self, x):
        fine = self.convolution(x)
        maps = [fine, nn.functional.avg_pool2d(fine, 2)]
        return maps if self.finest_first else maps[::-1]


def sum_of_losses(maps, target):
    finest = max(one.shape[-1] for one in maps)
    return sum(
        nn.functional.mse_loss(one, nn.functional.avg_pool2d(target, finest // one.shape[-1]))
        for one in maps
    )


def make_pairs(num_samples=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, 3, generator=generator)
    return TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 1)


def make_model():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def make_trainer(folder, max_epochs=4, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(task, data, folder, **options):
    trainer = make_trainer(folder, **options)
    loader = DataLoader(data, batch_size=8)
    trainer.fit(task, loader, loader)
    return {name: value.item() for name, value in trainer.logged_metrics.items()}


def test_training_lowers_the_loss(tmp_path):
    task = RegressionTask(make_model(), learning_rate=0.1)
    before = make_trainer(tmp_path).validate(task, DataLoader(make_pairs()), verbose=False)
    logged = fit(task, make_pairs(), tmp_path, max_epochs=10)
    assert logged["val_loss"] < 0.2 * before[0]["val_loss"]
    assert set(logged) == {"train_loss", "val_loss"}


def test_the_logged_figures_are_those_of_all_samples(tmp_path):
    pairs, model = make_pairs(21), make_model()
    mae, mse = torchmetrics.MeanAbsoluteError(), torchmetrics.MeanSquaredError()
    task = RegressionTask(model, nn.L1Loss(), {"mae": mae, "mse": mse})
    logged = make_trainer(tmp_path).test(task, DataLoader(pairs, batch_size=8), verbose=False)[0]
    x, y = pairs.tensors
    error = (model(x) - y).abs()
    expected = {
        "test_loss": error.mean().item(),
        "test_mae": error.mean().item(),
        "test_mse": error.square().mean().item(),
    }
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "metrics",
    [
        torchmetrics.MeanAbsoluteError(),
        [torchmetrics.MeanAbsoluteError()],
        torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError()]),
    ],
)
def test_metrics_come_in_every_form(tmp_path, metrics):
    logged = fit(RegressionTask(make_model(), metrics=metrics), make_pairs(), tmp_path)
    assert {"train_MeanAbsoluteError", "val_MeanAbsoluteError"} < set(logged)


@pytest.mark.parametrize(("input_key", "target_key"), [("input", "target"), ("pores", "potential")])
def test_dicts_train_as_pairs_do(tmp_path, input_key, target_key):
    with_pairs = RegressionTask(make_model())
    fit(with_pairs, make_pairs(), tmp_path)
    with_dicts = RegressionTask(make_model(), input_key=input_key, target_key=target_key)
    fit(with_dicts, Dicts(make_pairs(), input_key, target_key), tmp_path)
    assert torch.equal(with_pairs.model.weight, with_dicts.model.weight)


def test_a_task_trains_as_a_plain_loop_does(tmp_path):
    task = RegressionTask(
        make_model(), optimizer=functools.partial(torch.optim.SGD, momentum=0.9), learning_rate=0.01
    )
    fit(task, make_pairs(), tmp_path, max_epochs=3)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        for x, y in DataLoader(make_pairs(), batch_size=8):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(task.model.weight, model.weight)


def test_prediction_takes_inputs_with_and_without_targets(tmp_path):
    task, pairs = RegressionTask(make_model()), make_pairs(8)
    expected = task.model(pairs.tensors[0])
    for data in (pairs, Dicts(pairs), pairs.tensors[0]):
        output = make_trainer(tmp_path).predict(task, DataLoader(data, batch_size=8))
        torch.testing.assert_close(output[0], expected)


def test_one_cycle_ends_with_the_last_step(tmp_path):
    task = RegressionTask(make_model(), learning_rate=0.1, schedule="one_cycle")
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(task, make_pairs(), tmp_path, max_epochs=5, callbacks=[Watch()])
    assert len(rates) == 15
    assert max(rates) == pytest.approx(0.1, rel=0.1)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[-1] < 1e-6


def test_a_custom_schedule_gets_the_number_of_steps(tmp_path):
    seen = []

    def schedule(optimizer, num_steps):
        seen.append(num_steps)
        return torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=num_steps)

    fit(RegressionTask(make_model(), schedule=schedule), make_pairs(), tmp_path, max_epochs=2)
    assert seen == [6]


class StopAt(pl.Callback):  # type: ignore[name-defined]
    """Ends a run as a crash would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, _):
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


@pytest.mark.parametrize("schedule", [None, "one_cycle"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, schedule):
    def make_task():
        mae = torchmetrics.MeanAbsoluteError()
        return RegressionTask(make_model(), metrics=mae, learning_rate=0.05, schedule=schedule)

    whole = make_task()
    fit(whole, make_pairs(), tmp_path)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(InterruptedError):
        fit(
            make_task(),
            make_pairs(),
            tmp_path,
            callbacks=[StopAt(2), keep],
            enable_checkpointing=True,
        )
    resumed = make_task()
    loader = DataLoader(make_pairs(), batch_size=8)
    trainer = make_trainer(tmp_path)
    trainer.fit(resumed, loader, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert trainer.current_epoch == 4
    assert not torch.equal(whole.model.weight, make_model().weight)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_a_checkpoint_holds_the_weights_only_and_loads_into_a_given_model(tmp_path):
    task = RegressionTask(make_model(), metrics=torchmetrics.MeanAbsoluteError())
    trainer = make_trainer(tmp_path)
    trainer.fit(task, DataLoader(make_pairs()))
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    state = torch.load(tmp_path / "task.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {"model.weight", "model.bias"}
    loaded = RegressionTask.load_from_checkpoint(tmp_path / "task.ckpt", model=nn.Linear(3, 1))
    assert torch.equal(loaded.model.weight, task.model.weight)


def test_segmentation_compares_classes(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 5, 4)
    target = (x.argmax(dim=1) + 1) % 3
    accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
    task = SegmentationTask(nn.Identity(), metrics={"accuracy": accuracy})
    loader = DataLoader(TensorDataset(x, target), batch_size=4)
    logged = make_trainer(tmp_path).test(task, loader, verbose=False)[0]
    assert logged["test_accuracy"] == 0
    assert logged["test_loss"] == pytest.approx(nn.functional.cross_entropy(x, target).item())


def test_one_logit_is_positive_for_the_second_class(tmp_path):
    x = torch.rand(4, 1, 6) * 0.9 + 0.05  # logits that could be taken for probabilities
    target = torch.ones(4, 1, 6)
    accuracy = torchmetrics.Accuracy(task="binary")
    task = SegmentationTask(nn.Identity(), nn.BCEWithLogitsLoss(), {"accuracy": accuracy})
    loader = DataLoader(TensorDataset(x, target), batch_size=4)
    assert make_trainer(tmp_path).test(task, loader, verbose=False)[0]["test_accuracy"] == 1


def test_segmentation_learns(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 1, 6, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    iou = torchmetrics.JaccardIndex(task="multiclass", num_classes=2)
    task = SegmentationTask(nn.Conv2d(1, 2, 1), metrics={"iou": iou}, learning_rate=0.3)
    assert fit(task, data, tmp_path, max_epochs=8)["val_iou"] > 0.9


@pytest.mark.parametrize("finest_first", [True, False])
@pytest.mark.parametrize("as_list", [True, False])
def test_multiscale_metrics_use_the_finest_output(tmp_path, finest_first, as_list):
    torch.manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    model = TwoScales(finest_first)
    task = MultiScaleTask(model, sum_of_losses, {"mse": torchmetrics.MeanSquaredError()})
    target = [y[:, :, ::2, ::2], y] if as_list else y
    output = model(x)
    compared = task.compared(output, target)
    assert compared[0] is max(output, key=torch.numel)
    assert compared[1] is y


def test_multiscale_learns(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 1, 4, 4)
    mse = torchmetrics.MeanSquaredError()
    task = MultiScaleTask(TwoScales(), sum_of_losses, {"mse": mse}, learning_rate=0.2)
    logged = fit(task, TensorDataset(x, 2 * x + 1), tmp_path, max_epochs=20)
    assert logged["val_mse"] < 0.05
    assert logged["val_mse"] < logged["val_loss"] < 2 * logged["val_mse"]


def test_a_list_of_scales_may_be_the_input(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, maps):
            return self.scale * (maps[0] + maps[1])

    data = [{"input": [torch.ones(2), torch.ones(2)], "target": torch.ones(2)}] * 6
    logged = fit(RegressionTask(Sum(), learning_rate=0.1), data, tmp_path)
    assert logged["val_loss"] < 1


def test_fitting_raises_no_warning_of_ours(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = RegressionTask(make_model(), metrics=torchmetrics.MeanAbsoluteError())
        fit(task, make_pairs(20), tmp_path)
    texts = [str(warning.message) for warning in caught]
    assert not [text for text in texts if "batch_size" in text or "sync_dist" in text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"domain_size": 0, "tile_size": 8}, "domain_size must be at least 1, got 0"),
        ({"domain_size": 2}, "domain_size needs a tile_size, got domain_size 2"),
        (
            {"schedule": "cosine"},
            r"schedule must be one of \['one_cycle'\], a callable or None, got 'cosine'",
        ),
    ],
)
def test_wrong_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        RegressionTask(make_model(), **options)


def test_a_domain_needs_its_processes():
    task = RegressionTask(make_model(), tile_size=8, domain_size=2)
    with pytest.raises(
        ValueError, match="must divide the number of processes, got 2 and 1 process"
    ):
        task.training_step((torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)), 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input": 1, "label": 2}, r"keys \('input', 'target'\), got \['input', 'label'\]"),
        ((1, 2, 3), r"pair \(input, target\) .*, got a tuple of 3"),
        ([1], "got a list of 1"),
        (torch.zeros(2), "got a Tensor"),
    ],
)
def test_batches_without_a_target_raise(batch, message):
    with pytest.raises(ValueError, match=message):
        RegressionTask(make_model()).training_step(batch, 0)


def test_a_schedule_without_an_end_raises(tmp_path):
    task = RegressionTask(make_model(), schedule="one_cycle")
    with pytest.raises(ValueError, match="Trainer with max_epochs or max_steps, got inf steps"):
        fit(task, make_pairs(), tmp_path, max_epochs=-1)


def test_without_lightning_the_module_imports_and_the_tasks_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    for name in ("task", "step"):
        monkeypatch.delitem(sys.modules, f"neurenix_ms.training.{name}")
    training = importlib.import_module("neurenix_ms.training")
    monkeypatch.delattr(training, "task", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'neurenix_ms\[train\]'"):
        training.RegressionTask  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Task'"):
        training.Task  # noqa: B018


def test_training_in_tiles_is_training():
    """Loss, weights and running statistics after two epochs, with clipping by the Trainer."""
    from lightning.pytorch import Trainer, seed_everything

    from neurenix_ms import UNet

    x, y = torch.randn(4, 1, 40, 40), torch.randn(4, 1, 40, 40)
    results = []
    for tile_size in (None, 16):
        seed_everything(0)
        # not Adam: it makes steps of the rounding in gradients that are zero
        task = RegressionTask(
            UNet(1, 1, features=[4, 6]),
            optimizer=torch.optim.SGD,
            learning_rate=0.1,
            tile_size=tile_size,
        )
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            gradient_clip_val=0.1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
        trainer.fit(task, data, data)
        results.append((task.state_dict(), trainer.callback_metrics))
    (plain, plain_log), (tiled, tiled_log) = results
    for key in ("train_loss", "val_loss"):
        torch.testing.assert_close(tiled_log[key], plain_log[key], rtol=1e-4, atol=1e-5)
    for key, value in plain.items():
        torch.testing.assert_close(tiled[key], value, rtol=1e-3, atol=1e-3, msg=key)


def test_known_gradients_are_added_and_scaled():
    from neurenix_ms.training.tiles import loss_in_tiles

    model, x = torch.nn.Conv1d(1, 1, 3, padding=1), torch.randn(1, 1, 64)
    model.weight.grad = torch.ones_like(model.weight)
    mse = torch.nn.functional.mse_loss
    (3 * loss_in_tiles(model, x, x, mse, 16, ())).backward()
    other = torch.nn.Conv1d(1, 1, 3, padding=1)
    other.load_state_dict(model.state_dict())
    mse(other(x), x).backward()
    torch.testing.assert_close(model.weight.grad, 1 + 3 * other.weight.grad)
    torch.testing.assert_close(model.bias.grad, 3 * other.bias.grad)


@pytest.mark.parametrize("tile_size", [None, 8])
@pytest.mark.parametrize("as_dict", [True, False])
def test_a_condition_reaches_the_network(as_dict: bool, tile_size: int | None):
    torch.manual_seed(0)
    model = UNet(1, 1, [4], norm=None, condition_channels=2)
    for film in (m for m in model.modules() if isinstance(m, FiLM)):
        nn.init.normal_(film.weight)
    x, z, y = torch.randn(2, 1, 20, 20), torch.randn(2, 2), torch.randn(2, 1, 20, 20)
    batch = {"input": x, "speed": z, "target": y} if as_dict else (x, z, y)
    task = RegressionTask(model, condition_key="speed", tile_size=tile_size)
    task.log = lambda *_, **__: None
    wanted = nn.functional.mse_loss(model(x, z), y)
    for step in (task.training_step, task.validation_step):
        torch.testing.assert_close(step(batch, 0).detach(), wanted.detach())
    torch.testing.assert_close(task.eval().predict_step(batch), model(x, z))
    keys = r"\('input', 'target', 'speed'\)"
    words = rf"triple \(input, condition, target\) .*keys {keys}, got a tuple of 2"
    with pytest.raises(ValueError, match=words):
        task.training_step((x, y), 0)
