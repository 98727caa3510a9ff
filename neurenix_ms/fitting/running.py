"""Train what a config describes, with checkpoints, resumption and a folder of the result."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms._core.seeds import mixed_seed
from neurenix_ms.fitting.configs import (
    ALLOWED,
    OWN,
    Config,
    check_classes,
    class_paths,
    config_path,
    differences,
    overridden,
    read_config,
    written,
)
from neurenix_ms.fitting.loading import FitData
from neurenix_ms.sharing import save_pretrained

try:
    import jsonargparse
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
except ImportError as error:
    raise ImportError(
        "fit needs lightning and jsonargparse: pip install 'neurenix_ms[fit]'"
    ) from error

SCORE = "val_loss"
LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class Fitted:
    """Result of `fit`.

    Use it to continue with the network in Python: `from_pretrained(made.folder)` reads it.

    Args:
        folder: Folder of `save_pretrained` with the trained network.
        epochs: Epochs that were run, including those of interrupted runs.
        resumed: Whether an interrupted run was continued.
        scores: Losses and metrics of the last epoch.
        lines: Lines that the task reports about the network.

    Examples:
        >>> made = Fitted(Path("runs/mine/model"), 20, False, {"val_loss": 0.1}, [])
        >>> made.scores["val_loss"]
        0.1
    """

    folder: Path
    epochs: int
    resumed: bool
    scores: dict[str, float]
    lines: list[str]


def short_names() -> dict[str, str]:
    """Return the full names of the tasks and data modules of this package by their short names."""
    from neurenix_ms import fitting

    return {name: f"{OWN}.fitting.{name}" for name in fitting.CLASSES}


def prepared(config: str, overrides: Sequence[str] = (), *, trust: bool = False) -> Config:
    """Return a config by path or name, with its overrides, after its classes were checked.

    Args:
        config: Path of a YAML file, or name of a config of the package.
        overrides: Words such as `--data.size=64`.
        trust: Allow classes of every package.

    Raises:
        ValueError: If it is no config, or names a class that is not allowed.
    """
    path = config_path(config)
    content = overridden(read_config(path), overrides)
    content.setdefault("out", f"runs/{path.stem}")
    content.setdefault("seed_everything", 0)
    return check_classes(content, short_names(), trust)


def fit(
    config: str,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: bool = True,
) -> Fitted:
    """Train what a config describes, or continue an interrupted run of it, and write the network.

    Use it from Python as `neurenix-ms fit` on the command line. The folder `out` of the config gets
    `model`, a folder of `save_pretrained`; `checkpoints`; `logs` with the scores of every epoch; and
    `config.yaml`. After an interruption, call it again: it continues after the last complete epoch, with
    the same result as without the interruption.

    Args:
        config: Path of a YAML file, or name of a config of the package.
        overrides: Words such as `--data.size=64` that replace values of the config.
        overwrite: Start from the beginning, and replace the result of an earlier run.
        trust: Allow the config to name classes of every package. Their code runs.
        progress: Show a progress bar.

    Returns:
        Where the network is, and its scores.

    Raises:
        ValueError: If the config or the data are not usable, or an earlier run had another config (the
            message says what differs).
        ImportError: If lightning, jsonargparse or the reader of a file is missing.

    Examples:
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = np.random.default_rng(0).random((48, 40), dtype="float32")
        ...     np.save(f"{folder}/image.npy", image)
        ...     np.save(f"{folder}/labels.npy", (image > 0.5).astype("uint8"))
        ...     made = fit(
        ...         "segment_images",
        ...         [
        ...             f"--data.inputs={folder}/image.npy",
        ...             f"--data.targets={folder}/labels.npy",
        ...             "--data.size=8",
        ...             "--data.num_samples=8",
        ...             "--model.arguments.features=[4]",
        ...             "--trainer.max_epochs=1",
        ...             f"--out={folder}/run",
        ...         ],
        ...         progress=False,
        ...     )
        ...     made.epochs, sorted(os.listdir(made.folder))
        (1, ['README.md', 'config.json', 'model.safetensors'])
    """
    content = prepared(config, overrides, trust=trust)
    out = Path(content["out"])
    resumes = not overwrite and resumable(out, content)
    cli = _Cli(content, out, progress, trust)
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    last = out / "checkpoints" / LAST
    with quiet(), readable_errors(), redirect_stdout(sys.stderr):  # the progress bar
        if isinstance(data, FitData):
            data.progress = progress
            data.first_epoch = epochs_done(last) if resumes else 0
        if hasattr(task, "prepare"):
            task.prepare(data)
        if not resumes:
            start_anew(out, content)
        trainer.fit(
            task,
            datamodule=data,
            ckpt_path=str(last) if resumes else None,
            weights_only=True,
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
        scores = cli.epochs.scores
        take_best(task, scores, out / "checkpoints" / BEST)
        lines = task.report(data) if hasattr(task, "report") else []
    network = task.network() if hasattr(task, "network") else task.model
    write_network(network, out, content, trainer, scores, lines)
    return Fitted(out / "model", trainer.current_epoch, resumes, scores, lines)


def resumable(out: Path, content: Config) -> bool:
    """Return whether an earlier run of the same config can be continued; raise at one of another."""
    note, last = out / "config.yaml", out / "checkpoints" / LAST
    if not note.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out must be a new or empty folder, or that of a run, got {out}")
        return False
    try:
        found = differences(read_config(note), content)
    except ValueError as error:
        raise ValueError(f"{error}; --overwrite starts from the beginning") from error
    if found:
        raise ValueError(
            f"{out} must hold a run of the same config, got another: {'; '.join(found)}; give another "
            "--out, or --overwrite to start from the beginning"
        )
    return last.exists()


def epochs_done(last: Path) -> int:
    """Return the number of complete epochs of a checkpoint."""
    state = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    return int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def start_anew(out: Path, content: Config) -> None:
    """Remove the checkpoints of an earlier run, and note the config of this one."""
    for name in (LAST, BEST):
        (out / "checkpoints" / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.yaml", written(content).encode())


def take_best(task: LightningModule, scores: dict[str, float], best: Path) -> None:
    """Load the weights with the best score, where there is one."""
    if best.exists() and SCORE in scores:
        state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(state)


def write_network(
    network: nn.Module,
    out: Path,
    content: Config,
    trainer: Trainer,
    scores: dict[str, float],
    lines: Sequence[str],
) -> None:
    """Write the folder of the network, whose model card says how it was trained."""
    if not trainer.is_global_zero:
        return
    parts = [content["description"]] if content.get("description") else []
    parts += [
        f"Trained by `neurenix-ms fit` for {trainer.current_epoch} epochs. Scores of the last epoch: "
        + (", ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items())) or "none")
        + ".",
        *lines,
        f"Config:\n\n```yaml\n{written(content).rstrip()}\n```",
    ]
    save_pretrained(
        network.cpu().eval(),
        out / "model",
        overwrite=True,
        description="\n\n".join(parts),
        license=content.get("license"),
    )


class _Parser(LightningArgumentParser):
    """Parser of a config that is given as plain values: no part of it is read from another file."""

    def add_lightning_class_args(
        self,
        lightning_class: Any,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        add: Any = self.add_subclass_arguments if subclass_mode else self.add_class_arguments
        options = {"required": required} if subclass_mode else {"instantiate": False}
        return add(lightning_class, nested_key, fail_untyped=False, **options)


class _Cli(LightningCLI):
    """Lightning's command line of a checked config, without a command line.

    Args:
        content: The config.
        out: Folder of the run.
        progress: Show a progress bar.
        trust: Allow classes of every package.
    """

    def __init__(self, content: Config, out: Path, progress: bool, trust: bool) -> None:
        self.out = out
        self.progress = progress
        seed = content["seed_everything"]
        self.epochs = Epochs(seed if type(seed) is int else 0)
        restrict_imports(content, trust)
        sections = {key: content[key] for key in ("seed_everything", "model", "data", "trainer")}
        with quiet(), one_line():
            super().__init__(
                LightningModule,
                LightningDataModule,
                save_config_callback=None,
                parser_kwargs={"exit_on_error": False},
                parser_class=_Parser,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=sections,
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the sections, whatever the command line of the process is."""
        self.config = parser.parse_object(args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the Trainer of the config, with checkpoints and loggers in the folder of the run."""
        given = {**self.config_init["trainer"]}
        checkpoints = self.out / "checkpoints"
        common: dict[str, Any] = {
            "dirpath": checkpoints,
            "enable_version_counter": False,
            "save_on_train_epoch_end": True,  # after a validation, Lightning would repeat its epoch
        }
        callbacks = given.pop("callbacks", None) or []
        given["callbacks"] = [
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
            self.epochs,
            _Best(filename=Path(BEST).stem, monitor=SCORE, **common),
            ModelCheckpoint(filename=Path(LAST).stem, **common),
            *([TQDMProgressBar(leave=True)] if self.progress else []),
        ]
        if given.get("logger") in (None, True):
            given["logger"] = loggers(self.out)
        given["default_root_dir"] = str(self.out)
        given["enable_progress_bar"] = self.progress
        for name, value in {"enable_model_summary": False, "num_sanity_val_steps": 0}.items():
            given[name] = value if given.get(name) is None else given[name]
        return Trainer(**given)


class Epochs(Callback):
    """Callback that seeds torch before every epoch, so that a resumed run draws the same numbers.

    It keeps the scores of the last epoch, also in checkpoints.

    Args:
        seed: Seed of all epochs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.scores: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, task: LightningModule) -> None:
        torch.manual_seed(mixed_seed(self.seed, trainer.current_epoch))

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        self.scores = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores = state["scores"]


class _Best(ModelCheckpoint):
    """Checkpoint of the best validation score; without validation there is none."""

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        if SCORE in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, task)


def loggers(out: Path) -> list[Logger]:
    """Return a logger of CSV files, and one of TensorBoard where it is installed."""
    made: list[Logger] = [CSVLogger(out, "logs", "")]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        made.append(TensorBoardLogger(str(out), "tensorboard", ""))
    return made


def restrict_imports(content: Config, trust: bool) -> None:
    """Let jsonargparse import nothing but what the checks of the config allow."""
    names = {part["class_path"].partition(".")[0] for _, part in class_paths(content)}
    allowed = [OWN, *ALLOWED, *(sorted(names) if trust else [])]
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=allowed,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
    )


@contextmanager
def one_line() -> Iterator[None]:
    """Raise the errors of jsonargparse as a `ValueError` of one line."""
    try:
        yield
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"the config must fit its classes, got: {summary(str(error))}") from error
    except (ValueError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError) and "\n" not in str(cause):
            raise cause from None
        words = " ".join(str(cause).split())
        raise ValueError(f"the config must fit its classes, got: {words}") from error


def summary(text: str) -> str:
    """Return what jsonargparse says over many lines in one: the argument, its value and its type."""
    keys = re.findall(r'Parser key "([^"]+)":', text)
    if not keys:
        return " ".join(text.split())
    inner = text.rpartition(f'Parser key "{keys[-1]}":')[2]
    value = re.search(r"(?:Given|Got) value: (.*)", inner)
    reasons = re.findall(
        r"((?:Expected|Importing) [^.\n]*)", inner[: value.end() if value else None]
    )
    given = f" {value[1]}" if value else ""
    return f"{'.'.join(keys)}{given}: {'; '.join(reasons)}"


@contextmanager
def readable_errors() -> Iterator[None]:
    """Raise the errors of processes that read as errors of this one, with their last line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if "in DataLoader worker process" not in text:
            raise
        words = text.rstrip().splitlines()[-1]
        raise ValueError(f"a data loader process must not fail, got {words}") from error
    except SystemExit as error:  # Lightning's answer to an interruption
        raise KeyboardInterrupt from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about choices that are made here."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    words = (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists.*",
        ".*Experiment logs directory .* exists.*",
        ".*no `val_dataloader`.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Total length of `.*DataLoader` across ranks is zero.*",
    )
    try:
        with warnings.catch_warnings():
            for some in words:
                warnings.filterwarnings("ignore", some)
            warnings.filterwarnings("ignore", module="lightning.pytorch.cli")
            warnings.filterwarnings("ignore", "(?s).*JsonargparseDeprecationWarning.*")
            warnings.filterwarnings("ignore", "(?s).*was deprecated in v4.*")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
