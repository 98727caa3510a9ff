"""Cache on disk for samples that are computed once from their number."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.io.atomic import write_atomically

FORMAT = 1
LEFTOVER_AGE = 3600.0  # seconds after which a temporary file belongs to no running process


class UnusableFileError(Exception):
    """Error for a cache file that is corrupted or was made for something else; the text says which."""


class SampleCache:
    """Cache of samples computed from their number, one file each, checked at every read.

    Solvers are slow, so their results are cached. A file gets its name only when it is complete, so an
    interrupted run leaves no partial file and the next one resumes; several processes may fill one
    folder. A file that is corrupted, or was made for another number or with other parameters, is
    reported by a warning and computed again; its content is not used.

    Args:
        root: Folder of all caches; this one has a subfolder whose name ends in a digest of the
            parameters.
        name: Name of the dataset, with which the subfolder's name begins.
        parameters: Everything that a sample depends on besides its number: numbers, strings, lists
            and dicts. They are recorded in every file, and in `parameters.json` for people to read.
        make: Function that computes the sample of a number. It must depend on the number and the
            parameters only.
        packages: Installed packages that `make` uses. Their versions are recorded; samples made by
            other versions are read, with a warning.

    Examples:
        >>> import tempfile
        >>> squares = {"power": 2}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     cache = SampleCache(
        ...         root, "powers", squares, lambda i: {"value": torch.tensor(i**2)}
        ...     )
        ...     cache.fill(4, progress=False)
        ...     cache[3]
        {'value': tensor(9)}
    """

    @checked
    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        parameters: Mapping[str, Any],
        make: Callable[[int], Mapping[str, Tensor]],
        packages: Iterable[str] = (),
    ) -> None:
        self.root = root
        self.name = name
        self.parameters = dict(parameters)
        self.make = make
        self.packages = tuple(packages)
        text = json.dumps(self.parameters, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.folder = Path(root) / f"{name}_{digest}"

    def path(self, index: int) -> Path:
        """Return the file of the sample with number `index`."""
        return self.folder / f"{index:06d}.pt"

    def fill(self, num_samples: int, *, progress: bool = True) -> None:
        """Compute the samples 0 to `num_samples - 1` that are missing.

        Args:
            num_samples: Number of samples in the cache afterwards.
            progress: Show a progress bar while samples are computed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        text = json.dumps(self.parameters, sort_keys=True, indent=2) + "\n"
        described = self.folder / "parameters.json"
        if not described.exists() or described.read_bytes() != text.encode():
            write_atomically(described, text.encode())
        missing = self._find_missing(num_samples)
        if not missing:
            return
        from tqdm.auto import tqdm

        description = f"making {self.name}"
        for index in tqdm(missing, desc=description, unit="sample", disable=not progress):
            self._make_and_keep(index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path = self.path(index)
        if path.exists():
            try:
                return self._check(_load(path), index)["tensors"]
            except UnusableFileError as error:
                _report(path, error)
        return self._make_and_keep(index)

    def _find_missing(self, num_samples: int) -> list[int]:
        """Return the numbers without a usable file; reads the headers only, not the arrays."""
        missing, made_by_others = [], []
        installed = _versions(self.packages)
        for index in range(num_samples):
            path = self.path(index)
            if not path.exists():
                missing.append(index)
                continue
            try:
                record = self._check(_load(path, header_only=True), index)
            except UnusableFileError as error:
                _report(path, error)
                missing.append(index)
                continue
            if any(record["versions"].get(name) != now for name, now in installed.items()):
                made_by_others.append(record["versions"])
        if made_by_others:
            warnings.warn(
                f"{len(made_by_others)} of {num_samples} samples in {self.folder} were made by "
                f"{made_by_others[0]}, installed is {installed}; delete the folder to remake them",
                stacklevel=2,
            )
        return missing

    def _check(self, record: Any, index: int) -> dict[str, Any]:
        keys = {"format", "parameters", "index", "versions", "tensors"}
        if not isinstance(record, dict) or set(record) != keys or record["format"] != FORMAT:
            raise UnusableFileError("it is not a file of this cache")
        if record["index"] != index:
            raise UnusableFileError(f"it holds sample {record['index']}, not {index}")
        if record["parameters"] != self.parameters:
            raise UnusableFileError(f"it was made with other parameters: {record['parameters']}")
        return record

    def _make_and_keep(self, index: int) -> dict[str, Tensor]:
        # clone, because torch.save writes the whole storage of a view
        tensors = {name: value.detach().cpu().clone() for name, value in self.make(index).items()}
        record = {
            "format": FORMAT,
            "parameters": self.parameters,
            "index": index,
            "versions": _versions(self.packages),
            "tensors": tensors,
        }
        buffer = io.BytesIO()
        torch.save(record, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(index), buffer.getvalue())
        return tensors

    def _remove_leftovers(self) -> None:
        """Remove temporary files of interrupted runs; newer ones may belong to a running process."""
        for path in self.folder.glob(".tmp.*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                    path.unlink()


def _load(path: Path, *, header_only: bool = False) -> Any:
    """Read a file without unpickling any class, and compare it with its checksums."""
    try:
        if header_only:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:  # torch writes checksums but does not verify them
            broken = archive.testzip()
        if broken is not None:
            raise UnusableFileError(f"checksum of {broken} is wrong")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except (UnusableFileError, MemoryError, OSError):
        raise
    except Exception as error:  # a corrupted file may raise any exception
        text = str(error).partition("\n")[0]
        raise UnusableFileError(f"it cannot be read: {type(error).__name__}: {text}") from error


def _report(path: Path, error: UnusableFileError) -> None:
    warnings.warn(f"{path} is not used and computed again: {error}", stacklevel=3)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
