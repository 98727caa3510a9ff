"""Models as files: class name, config and state dict, written at once and read without running code."""

import importlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurenix_ms.arguments import checked
from neurenix_ms.config import Configured, is_plain, library_classes

FORMAT = "neurenix_ms model"
VERSION = 1
PARTS = ("multiscale", "msnet", "timestepping", "implicit")


@checked
def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, from which `load` gives it back.

    The file is one dict of plain values and tensors, readable with `torch.load(weights_only=True)`.
    It is written beside its place and renamed, so a killed save leaves the old file as it was.

    Args:
        model: Any module. Classes of the library come back by themselves, others need `load(model=)`.
        path: Where to write; any extension.

    Examples:
        >>> import tempfile
        >>> from neurenix_ms import UNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(UNet(1, 1, features=[4]), f"{folder}/m.nx")
        ...     load(f"{folder}/m.nx").features
        [4]
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        **described(model),
        "state_dict": model.state_dict(),
    }
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@checked
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    map_location: Any = None,
) -> nn.Module:
    """Read a model that `save` wrote; nothing in the file is executed.

    Use it for files from anywhere, also from people you do not know. For models of other projects see
    `neurenix_ms.weights`.

    Args:
        path: The file.
        model: The module to fill, where the file does not say how to build one: classes that are not
            the library's, and models built with callables. Left unchanged if the file does not fit.
        map_location: Where tensors go, as in `torch.load`.

    Returns:
        The model, in training mode if it was built here; `model` itself if it was given.

    Raises:
        ValueError: If the file is damaged, foreign, of a newer version, needs `model`, or does not
            fit it.

    Examples:
        >>> import tempfile
        >>> own = nn.Sequential(nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(own, f"{folder}/own.nx")
        ...     same = load(f"{folder}/own.nx", model=nn.Sequential(nn.Linear(3, 2)))
        >>> torch.equal(same[0].weight, own[0].weight)
        True
    """
    content = _read(path, map_location)
    target = model if model is not None else _built(content, path)
    _expect_fit(target, content["state_dict"], path)
    target.load_state_dict(content["state_dict"])
    return target


def described(model: nn.Module) -> dict[str, Any]:
    """Class name and config of a model; the config is None where the library cannot rebuild it."""
    if not isinstance(model, Configured) or type(model) not in set(library_classes()):
        return {"class": type(model).__name__, "config": None}
    known: Any = model  # a type checker takes every attribute of a module for a submodule
    config = {name: _described_inside(value) for name, value in known.config.items()}
    whole = is_plain(config) and all(
        inner["config"] is not None for value in config.values() for inner in _modules_of(value)
    )
    return {"class": type(model).__name__, "config": config if whole else None}


def _described_inside(value: Any) -> Any:
    """A module becomes its description, a list of modules one of descriptions."""
    if isinstance(value, nn.Module):
        return described(value)
    return [_described_inside(item) for item in value] if isinstance(value, list) else value


def _modules_of(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _read(path: str | os.PathLike[str], map_location: Any) -> dict[str, Any]:
    damages = (RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError)
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location=map_location, weights_only=True)
        except (*damages, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} must be a file of neurenix_ms.save, got damage: {error}"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} must be a file of neurenix_ms.save, got something else")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{path} must have a format version of at most {VERSION}, got {version}; "
            "a newer neurenix_ms reads it"
        )
    if not isinstance(content.get("class"), str) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} must hold a class name and a state dict, got {sorted(content)}")
    return content


def _built(content: dict[str, Any], path: str | os.PathLike[str]) -> nn.Module:
    if not isinstance(content.get("config"), dict):
        raise ValueError(
            f"{path} holds a {content['class']} that cannot be rebuilt from the file alone; "
            "build it and pass it as model="
        )
    classes = {cls.__name__: cls for cls in library_classes()}
    if content["class"] not in classes:  # of a part that nothing has imported yet
        for part in PARTS:
            importlib.import_module(f"neurenix_ms.{part}")
        classes = {cls.__name__: cls for cls in library_classes()}
    if content["class"] not in classes:
        raise ValueError(f"{path} must hold one of {sorted(classes)}, got {content['class']!r}")
    arguments = {name: _built_inside(value, path) for name, value in content["config"].items()}
    try:
        return classes[content["class"]](**arguments)
    except TypeError as error:
        raise ValueError(f"{path} has a config that does not fit its class: {error}") from error


def _built_inside(value: Any, path: str | os.PathLike[str]) -> Any:
    if isinstance(value, dict):
        return _built(value, path)
    return [_built_inside(item, path) for item in value] if isinstance(value, list) else value


def _expect_fit(model: nn.Module, state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse before anything is changed: load_state_dict itself would stop half-way."""
    if any(not isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold tensors only in its state dict")
    own = model.state_dict()
    lazy = {name for name in state if name.startswith("scores.") and name not in own}
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own) - lazy)
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {missing[:3]}, "
            f"left over {extra[:3]}, misshapen {shapes[:3]}"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
