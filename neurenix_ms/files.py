"""Models as files: class name, config and state dict, written at once and read without running code."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import PLAIN, Configured, check_plain, is_plain, library_classes
from neurenix_ms._core.io.atomic import replacing
from neurenix_ms._core.io.records import DTYPES
from neurenix_ms._core.io.stored import FORMAT, VERSION, Stored, build, read_stored, read_weights


@checked
def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, from which `load` gives it back.

    The file is one dict of plain values and tensors, readable with `torch.load(weights_only=True)`.
    It is written beside its place and renamed, so a killed save leaves the old file as it was.

    Args:
        model: Any module. Classes of the library come back by themselves, others need `load(model=)`.
        path: Where to write; any extension.

    Raises:
        ValueError: If `load` could not read the file: an argument of the model that only looks plain,
            such as a number of NumPy, or an entry of its state dict that is no dense tensor. Nothing
            is written then.

    Examples:
        >>> import tempfile
        >>> from neurenix_ms import UNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(UNet(1, 1, features=[4]), f"{folder}/m.nx")
        ...     load(f"{folder}/m.nx").features
        [4]
    """
    state = model.state_dict()
    for name, value in state.items():
        state[name] = _storable(name, value)
    content = {"format": FORMAT, "version": VERSION, **described(model), "state_dict": state}
    with replacing(path) as file:
        _write(content, file)


@checked
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    map_location: str | torch.device | Mapping[str, str] | None = None,
) -> nn.Module:
    """Read a model that `save` wrote; nothing in the file is executed.

    Use it for files from anywhere, also from people you do not know. For models of other projects see
    `neurenix_ms.weights`.

    Args:
        path: The file.
        model: The module to fill, where the file does not say how to build one: classes that are not
            the library's, and models built with callables. Left unchanged if the file does not fit.
        map_location: Device where tensors go, or a dict of devices by where they were; the CPU by
            default.

    Returns:
        The model, in training mode and with the types of the file if it was built here; `model`
        itself if it was given.

    Raises:
        ValueError: If the file is damaged, foreign, of a newer version, needs `model`, does not fit
            it, or describes a model that is larger than what the file stores. It is refused before a
            model is built or a weight is read.

    Examples:
        >>> import tempfile
        >>> own = nn.Sequential(nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(own, f"{folder}/own.nx")
        ...     same = load(f"{folder}/own.nx", model=nn.Sequential(nn.Linear(3, 2)))
        >>> torch.equal(same[0].weight, own[0].weight)
        True
    """
    with open(path, "rb") as file:
        stored = read_stored(file, path)
        if model is None and stored.has_backbone:
            with torch.device("meta"):  # whether it fits is known before there is any memory for it
                _check_fit(build(stored, path), stored, path)
        target = build(stored, path) if model is None else model
        _check_fit(target, stored, path)
        try:
            state = read_weights(stored, map_location)
        except ValueError as error:
            raise ValueError(
                f"{path} must be a file of neurenix_ms.save, got damage: {error}"
            ) from error
    if model is None:
        _take_over(target, state)
    else:
        target.load_state_dict(state)
    return target


def described(model: nn.Module) -> dict[str, Any]:
    """Class name and config of a model; the config is None where the library cannot rebuild it."""
    if not isinstance(model, Configured) or type(model) not in set(library_classes()):
        return {"class": type(model).__name__, "config": None}
    known: Any = model  # a type checker takes every attribute of a module for a submodule
    config = {name: _described_inside(name, value) for name, value in known.config.items()}
    whole = is_plain(config) and all(
        inner["config"] is not None for value in config.values() for inner in _modules_of(value)
    )
    return {"class": type(model).__name__, "config": config if whole else None}


def _described_inside(name: str, value: Any) -> Any:
    """A module becomes its description, a list of modules one of descriptions."""
    if isinstance(value, nn.Module):
        return described(value)
    if isinstance(value, list):
        return [_described_inside(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, (*PLAIN, dict)) or hasattr(value, "dtype"):  # or it only looks like it
        check_plain(name, value)
    return value


def _modules_of(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _storable(name: str, value: Any) -> torch.Tensor:
    """An entry of a state dict as a tensor that `load` reads, copied only where it has to be."""
    plain = type(value) in (torch.Tensor, nn.Parameter) and value.layout is torch.strided
    if not plain or value.is_nested or value.is_meta or value.dtype not in DTYPES.values():
        kind = f"{value.layout} {value.dtype}" if isinstance(value, torch.Tensor) else "no tensor"
        raise ValueError(
            f"state_dict[{name!r}] must be a dense tensor of numbers on a device, got {shown(value)} "
            f"({type(value).__name__}, {kind}); convert it before saving"
        )
    value = value.detach().resolve_conj().resolve_neg()
    stored = value.untyped_storage().nbytes() // value.dtype.itemsize
    return value.contiguous() if value.numel() > stored else value


def _write(content: dict[str, Any], file: Any) -> None:
    """Write with a checksum of every tensor, whatever this process has chosen for its own files."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(before)


def _take_over(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fill a fresh model; it gets the types and the device of what is in the file."""
    floating = [value for value in state.values() if value.is_floating_point()]
    kinds = {value.dtype for value in floating}
    if floating:
        model.to(floating[0].device)
    if len(kinds) == 1 and kinds != {torch.get_default_dtype()}:
        model.to(dtype=kinds.pop())
    if len(kinds) > 1:  # parameters that have types of their own are replaced
        model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    else:
        model.load_state_dict(state)


def _check_fit(model: nn.Module, stored: Stored, path: str | os.PathLike[str]) -> None:
    """Refuse before anything is changed: load_state_dict itself would stop half-way."""
    own, tensors = model.state_dict(), stored.tensors
    later = tuple(_added_later(model, stored))
    missing = sorted(name for name in set(own) - set(tensors) if not name.startswith(later))
    extra = sorted(set(tensors) - set(own))
    shapes = [
        f"{name} {tensors[name].size} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].size != tuple(own[name].shape)
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {missing[:3]}, "
            f"left over {extra[:3]}, misshapen {shapes[:3]}"
        )
    kinds = [
        f"{name} {tensors[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in tensors and _kind(tensors[name].dtype) != _kind(own[name].dtype)
    ]
    if kinds:
        raise ValueError(f"{path} does not fit {type(model).__name__}: other types {kinds[:3]}")


def _added_later(model: nn.Module, stored: Stored) -> Iterator[str]:
    """Beginnings of names that a file of an older version lacks, and load_state_dict fills in."""
    for path, module in model.named_modules():
        version = stored.versions.get(path, {}).get("version")
        part = getattr(type(module), "missing_in_version", {}).get(version)
        beginning = ".".join(filter(None, (path, part)))
        if part is not None and not any(name.startswith(beginning) for name in stored.tensors):
            yield beginning


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "complex" if dtype.is_complex else "floating point"
    return "bool" if dtype is torch.bool else "integer"
