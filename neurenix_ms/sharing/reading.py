"""Reading of a network from a folder, without running anything in it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import check_plain
from neurenix_ms._core.io.records import LONGEST_NAME
from neurenix_ms._core.io.safe import checksum, read_weights, tensor_records
from neurenix_ms._core.io.stored import Stored, build
from neurenix_ms.files import check_fit, load, take_over
from neurenix_ms.sharing.writing import CONFIG, FORMAT, VERSION, WEIGHTS

KEYS = {"format", "version", "class", "config", "preset", "versions", "sha256"}
LARGEST_CONFIG = 2**24  # bytes


def read_folder(
    folder: str | os.PathLike[str], device: str | torch.device | None = None
) -> nn.Module:
    """Build the network that a folder describes, with its weights.

    Args:
        folder: A folder of `save_pretrained`.
        device: Where its tensors go.

    Raises:
        ValueError: If a file is missing, corrupted or does not fit the others.
    """
    content, stored = read_description(folder)
    path = Path(folder) / WEIGHTS
    if stored.has_backbone:
        with torch.device("meta"):  # check the fit before memory is allocated
            check_fit(build(stored, folder), stored, path)
    model = build(stored, folder)
    check_fit(model, stored, path)
    if content["sha256"] is not None and checksum(path) != content["sha256"]:
        raise ValueError(
            f"{path} must have the checksum of {CONFIG}, got another: the file is corrupted, or of "
            "another network"
        )
    state: Any = dict(read_weights(path, device))
    take_over(model, state)
    if content["preset"] is not None:
        known: Any = model
        known.preset = content["preset"]
    return model


def read_network(
    path: str | os.PathLike[str], device: str | torch.device | None = None
) -> nn.Module:
    """Return the network of a file of `save` or a folder of `save_pretrained`, in evaluation.

    Args:
        path: The file or folder.
        device: Where its tensors go.

    Raises:
        ValueError: If it is corrupted.
        FileNotFoundError: If there is no such file or folder.
    """
    if Path(path).is_dir():
        return read_folder(path, device).eval()
    return load(path, map_location=device).eval()


def read_description(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], Stored]:
    """Read everything in a folder but the values of the weights.

    Args:
        folder: A folder of `save_pretrained`.

    Returns:
        The content of `config.json`, and what the folder holds.

    Raises:
        ValueError: If a file is missing or corrupted.
    """
    config, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise ValueError(
                f"{folder} must be a folder of save_pretrained with {CONFIG} and {WEIGHTS}, got no "
                f"{path.name}"
            )
    content = _checked(_json(config), config)
    tensors = tensor_records(weights)
    metadata = {name: {"version": n} for name, n in content["versions"].items()}
    stored = Stored(content["class"], content["config"], tensors, metadata, lambda name: b"")
    if stored.num_bytes > weights.stat().st_size:
        raise ValueError(
            f"{weights} must hold {stored.num_bytes} bytes, got {weights.stat().st_size}"
        )
    return content, stored


def _json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{path} must have at most {LARGEST_CONFIG} bytes, got more")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON file, got a corrupted one: {error}") from error


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of `config.json`, of which only plain values of the right kind are left."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} must be a file of save_pretrained, got other JSON")
    if type(content.get("version")) is not int or content["version"] > VERSION:
        raise ValueError(
            f"{path} must have a format version of at most {VERSION}, got "
            f"{shown(content.get('version'))}; upgrade neurenix_ms to read it"
        )
    if unknown := sorted(set(content) - KEYS):
        raise ValueError(f"{path} must hold {sorted(KEYS)} only, got {shown(unknown)} too")
    check_plain("config", content.get("config"))
    versions = content.setdefault("versions", {})
    named = isinstance(versions, dict) and all(type(n) is int for n in versions.values())
    texts = all(
        isinstance(content.setdefault(key, None), str | None)
        and len(content[key] or "") <= LONGEST_NAME
        for key in ("class", "preset", "sha256")
    )
    whole = isinstance(content["class"], str) and isinstance(content.get("config"), dict)
    if not (named and texts and whole):
        raise ValueError(
            f"{path} must hold a class name, its config and versions, got {shown(content)}"
        )
    return content
