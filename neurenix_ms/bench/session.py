"""What all tests of one run share: options, device, stored figures, measured cases."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurenix_ms.bench import stored
from neurenix_ms.bench.recording import Case
from neurenix_ms.bench.results import FORMAT, KEY
from neurenix_ms.bench.timing import Timed, matmul_rates

if TYPE_CHECKING:
    import pytest


class Session:
    """Options of the command line as values, and what was measured so far.

    Args:
        config: Of this run of pytest.

    Raises:
        ValueError: If an option has no meaning.
    """

    def __init__(self, config: "pytest.Config") -> None:
        option = config.getoption
        self.threads: int = option("bench_threads")
        self.resident: bool = option("bench_resident")
        self.storing: bool = option("bench_store")
        self.checking: bool = option("bench_check") and not self.storing
        devices = option("bench_device")
        self.device = _device(devices[0] if devices else None)
        self.forms: dict[str, Any] = {
            "sizes": option("bench_sizes"),
            "batch": option("bench_batch"),
            "dtype": _dtypes(option("bench_dtype")),
            "device": devices if devices and len(devices) > 1 else None,
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
            self._found[key] = {figure: measured[figure] for figure in stored.FIGURES}
            return None
        return stored.complaint(key, measured, self.stored)

    def finish(self) -> None:
        """Write what is to be stored."""
        if self._found:
            stored.store(self._found, self.file)

    def description(self) -> dict[str, Any]:
        """What the plugin adds to a JSON of pytest-benchmark: the machine as torch sees it."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "format": FORMAT,
            "torch": torch.__version__,
            "threads": self.threads,
            "mkldnn": torch.backends.mkldnn.is_available(),
            "gpu": gpu,
            "matmul_flops_per_s": matmul_rates(),
        }

    def content(self) -> dict[str, Any]:
        """The compared cases as they stand in a JSON of pytest-benchmark."""
        benchmarks = [
            {
                "group": case.group,
                "name": case.name,
                "fullname": case.nodeid,
                "params": case.params,
                "extra_info": case.measured,
                "stats": {"median": timed.median if timed else None},
            }
            for case, timed in self.cases
        ]
        return {"machine_info": {}, KEY: self.description(), "benchmarks": benchmarks}


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        words = str(error).splitlines()[0]
        raise ValueError(
            f"--bench-device must be a device of torch, got {name!r} ({words})"
        ) from None


def _dtypes(names: list[str] | None) -> list[torch.dtype] | None:
    if names is None:
        return None
    dtypes = [getattr(torch, name, None) for name in names]
    for name, dtype in zip(names, dtypes, strict=True):
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"--bench-dtype must be a dtype of torch, got {name!r}")
    return [dtype for dtype in dtypes if dtype is not None]
