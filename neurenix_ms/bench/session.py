"""State that all tests of a run share: options, device, stored figures, measured cases."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurenix_ms.bench import stored
from neurenix_ms.bench.forms import as_device, as_dtype, default_device
from neurenix_ms.bench.recording import Case, content_of, described
from neurenix_ms.bench.timing import Timed

if TYPE_CHECKING:
    import pytest


class Session:
    """Options of the command line as values, and the cases measured so far.

    Args:
        config: Config of this run of pytest.

    Raises:
        ValueError: If an option is invalid.
    """

    def __init__(self, config: "pytest.Config") -> None:
        option = config.getoption
        self.threads: int = option("bench_threads")
        self.resident: bool = option("bench_resident")
        self.storing: bool = option("bench_store")
        self.checking: bool = option("bench_check") and not self.storing
        devices = option("bench_device")
        self.device = as_device(devices[0]) if devices else default_device()
        self.forms: dict[str, Any] = {
            "sizes": option("bench_sizes"),
            "batch": option("bench_batch"),
            "dtype": _each(as_dtype, option("bench_dtype")),
            "device": _each(as_device, devices) if devices and len(devices) > 1 else None,
            "compile": [False, True] if option("bench_compile") else None,
            "channels_last": [False, True] if option("bench_channels_last") else None,
        }
        self.file: Path = config.rootpath / option("bench_file")
        self.stored = stored.load(self.file) if self.storing or self.checking else {}
        self.cases: list[tuple[Case, Timed | None]] = []
        self._found: stored.Stored = {}
        self._paths: dict[str, Path] = {}

    def key(self, item: "pytest.Item", name: str) -> str:
        """Name of a case in a stored file: of the file without its folder, and of the test.

        Raises:
            ValueError: If two files of one name are measured.
        """
        path = self._paths.setdefault(item.path.stem, item.path)
        if path != item.path:
            raise ValueError(
                "files whose figures are stored must have different names, "
                f"got {path} and {item.path}"
            )
        return f"{item.path.stem}::{name}"

    def hold(
        self, item: "pytest.Item", name: str, measured: Mapping[str, Any], device: torch.device
    ) -> str | None:
        """Store bytes and operations, or compare them with what is stored; a complaint, or None."""
        wanted = self.storing or self.checking
        known = all(measured[figure] is not None for figure in stored.FIGURES)
        if not wanted or not known or device.type != "cpu" or self.resident:
            return None
        key = self.key(item, name)
        if self.storing:
            self._found[key] = stored.figures_of(measured)
            return None
        return stored.complaint(key, measured, self.stored)

    def finish(self) -> None:
        """Write the figures to store."""
        if self._found:
            stored.store(self._found, self.file)

    def content(self) -> dict[str, Any]:
        """Return the compared cases in the JSON format of pytest-benchmark."""
        return content_of(self.cases, self.description())

    def description(self) -> dict[str, Any]:
        """Return what the plugin adds to a JSON of pytest-benchmark: the machine as torch sees it."""
        return described(self.device, self.threads)


def _each(convert: Callable[[Any], Any], values: list[Any] | None) -> list[Any] | None:
    return None if values is None else [convert(value) for value in values]
