"""Saving and loading of models, with atomic writes and without running code of a file."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import PLAIN, Configured, check_plain, is_plain, library_classes
from neurenix_ms._core.io.atomic import replacing, write_atomically
from neurenix_ms._core.io.records import DTYPES, LONGEST_NAME
from neurenix_ms._core.io.room import save_to
from neurenix_ms._core.io.safe import (
    check_dtypes,
    metadata_of,
    safetensors,
    tensor_records,
    unshared,
)
from neurenix_ms._core.io.safe import read_weights as read_safe
from neurenix_ms._core.io.stored import FORMAT, VERSION, Stored, build, read_stored, read_weights

SAFE = "neurenix_ms"  # name of class and config in the metadata of a safetensors file


@checked
def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: Literal["nx", "safetensors"] = "nx",
) -> None:
    """Write a model to one file, from which `load` rebuilds it.

    The file holds class name, config and state dict: one dict of plain values and tensors, which
    `torch.load(weights_only=True)` can read. It is written under a temporary name and renamed, so an
    interrupted save leaves the old file unchanged.

    Args:
        model: Any module. `load` rebuilds classes of the library; for others it needs its argument
            `model`.
        path: Path of the file, with any extension.
        format: "safetensors" writes a file whose weights other programs read, with class and config as
            JSON in its metadata; "nx" one of torch.save, which keeps more dtypes and shared memory.

    Raises:
        ValueError: If `load` could not read the file, because an argument of the model is not a plain
            value, such as a NumPy number, or an entry of its state dict is not a dense tensor, or has a
            dtype that safetensors does not have. Nothing is written then.
        OSError: If the disk is full or the folder is read-only. A file at `path` stays as it was.
        ImportError: If safetensors is asked for and missing.

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
        state[name] = storable(name, value)
    if format == "safetensors":
        check_dtypes(state)
        about = {"version": VERSION, **described(model), "versions": versions_of(model)}
        metadata = {"format": "pt", SAFE: json.dumps(about, allow_nan=False)}
        write_atomically(path, safetensors().torch.save(unshared(state), metadata))
        return
    content = {"format": FORMAT, "version": VERSION, **described(model), "state_dict": state}
    with replacing(path) as file:
        _write(content, file)


@checked
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    map_location: str | torch.device | Mapping[str, str] | None = None,
) -> nn.Module:
    """Read a model that `save` wrote, without executing anything in the file.

    It is safe for files from untrusted sources. For models of other projects see
    `neurenix_ms.weights`.

    Args:
        path: Path of the file.
        model: The module to load the weights into, if the file does not describe how to build it:
            classes outside of the library, and models built with callables. It is not changed if the
            file does not fit.
        map_location: Device of the tensors, or a dict from their device in the file to it; the CPU by
            default.

    Returns:
        The model, in training mode and with the dtypes of the file if `load` built it; `model` itself if
        it was given.

    Raises:
        ValueError: If the file is corrupted, was not written by `save`, has a newer version, needs
            `model`, does not fit it, or describes a model that is larger than what the file stores. The
            error is raised before a model is built or a weight is read.

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
        safe = file.read(9)[8:] == b"{"  # after the length of the header of safetensors
        file.seek(0)
        stored = _read_safe(path) if safe else read_stored(file, path)
        if model is None and stored.has_backbone:
            with torch.device("meta"):  # check the fit before memory is allocated
                check_fit(build(stored, path), stored, path)
        target = build(stored, path) if model is None else model
        check_fit(target, stored, path)
        try:
            state = (
                _safe_weights(path, map_location) if safe else read_weights(stored, map_location)
            )
        except ValueError as error:
            raise ValueError(
                f"{path} must be a file of neurenix_ms.save, got a corrupted or foreign file: {error}"
            ) from error
    if model is None:
        take_over(target, state)
    else:
        target.load_state_dict(state)
    return target


def _read_safe(path: str | os.PathLike[str]) -> Stored:
    """Read and check everything in a safetensors file of `save` but the values of the weights."""
    text = metadata_of(path).get(SAFE)
    if text is None:
        raise ValueError(
            f"{path} must be a file of neurenix_ms.save, got safetensors without a class"
        )
    try:
        content = json.loads(text)
        check_plain("metadata", content)
        name, config, versions = (content[key] for key in ("class", "config", "versions"))
        version = content["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} does not hold a model: {error}") from error
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"{path} must have a format version of at most {VERSION}, got {shown(version)}; "
            "upgrade neurenix_ms to read it"
        )
    named = isinstance(versions, dict) and all(type(n) is int for n in versions.values())
    if type(name) is not str or len(name) > LONGEST_NAME or not isinstance(config, dict | None):
        named = False
    if not named:
        raise ValueError(
            f"{path} must hold a class name, its config and versions, got {shown(content)}"
        )
    metadata = {name: {"version": n} for name, n in versions.items()}
    return Stored(name, config, tensor_records(path), metadata, lambda key: b"")


def _safe_weights(path: str | os.PathLike[str], device: Any) -> Any:
    """Return the tensors of a safetensors file, which stores none of their devices."""
    return read_safe(path, device.get("cpu") if isinstance(device, Mapping) else device)


def versions_of(model: nn.Module) -> dict[str, int]:
    """Return the versions of the state dicts of classes of the library that have changed."""
    metadata: Any = getattr(model.state_dict(), "_metadata", {})
    ours = {name for name, part in model.named_modules() if isinstance(part, Configured)}
    found = {name: entry.get("version", 1) for name, entry in metadata.items() if name in ours}
    return {name: version for name, version in found.items() if version not in (1, None)}


def described(model: nn.Module) -> dict[str, Any]:
    """Return class name and config of a model; the config is None if the library cannot rebuild it."""
    if not isinstance(model, Configured) or type(model) not in set(library_classes()):
        return {"class": type(model).__name__, "config": None}
    known: Any = model  # a type checker treats every attribute of a module as a submodule
    config = {name: _described_inside(name, value) for name, value in known.config.items()}
    whole = is_plain(config) and all(
        inner["config"] is not None for value in config.values() for inner in _modules_of(value)
    )
    return {"class": type(model).__name__, "config": config if whole else None}


def _described_inside(name: str, value: Any) -> Any:
    """Return a value with modules, also those in lists, replaced by their descriptions."""
    if isinstance(value, nn.Module):
        return described(value)
    if isinstance(value, list):
        return [_described_inside(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, (*PLAIN, dict)) or hasattr(value, "dtype"):  # also NumPy numbers
        check_plain(name, value)
    return value


def _modules_of(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def storable(name: str, value: Any) -> torch.Tensor:
    """Return an entry of a state dict as a tensor that `load` can read, copied only if necessary."""
    plain = type(value) in (torch.Tensor, nn.Parameter) and value.layout is torch.strided
    if not plain or value.is_nested or value.is_meta or value.dtype not in DTYPES.values():
        kind = (
            f"{value.layout} {value.dtype}" if isinstance(value, torch.Tensor) else "not a tensor"
        )
        raise ValueError(
            f"state_dict[{name!r}] must be a dense tensor of numbers on a device, got {shown(value)} "
            f"({type(value).__name__}, {kind}); convert it before saving"
        )
    value = value.detach().resolve_conj().resolve_neg()
    stored = value.untyped_storage().nbytes() // value.dtype.itemsize
    return value.contiguous() if value.numel() > stored else value


def _write(content: dict[str, Any], file: Any) -> None:
    """Write with a checksum of every tensor, independently of the setting of the process."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        save_to(file, content)
    finally:
        torch.serialization.set_crc32_options(before)


def take_over(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load the state dict into a new model, which gets the dtypes and the device of the tensors."""
    floating = [value for value in state.values() if value.is_floating_point()]
    kinds = {value.dtype for value in floating}
    if floating:
        model.to(floating[0].device)
    if len(kinds) == 1 and kinds != {torch.get_default_dtype()}:
        model.to(dtype=kinds.pop())
    if len(kinds) > 1:  # parameters of different dtypes are replaced
        model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    else:
        model.load_state_dict(state)


def check_fit(model: nn.Module, stored: Stored, path: str | os.PathLike[str]) -> None:
    """Raise before anything is changed; `load_state_dict` alone would stop after some entries."""
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
            f"unexpected {extra[:3]}, shape mismatch {shapes[:3]}"
        )
    kinds = [
        f"{name} {tensors[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in tensors and _kind(tensors[name].dtype) != _kind(own[name].dtype)
    ]
    if kinds:
        raise ValueError(f"{path} does not fit {type(model).__name__}: dtype mismatch {kinds[:3]}")


def _added_later(model: nn.Module, stored: Stored) -> Iterator[str]:
    """Yield prefixes of names that older files lack and `load_state_dict` adds."""
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
