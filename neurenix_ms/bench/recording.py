"""Pass measured figures to pytest-benchmark, which saves, compares and draws them."""

import copy
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from neurenix_ms.bench.results import BENCH_FORMAT, KEY
from neurenix_ms.bench.timing import Timed, matmul_rates

if TYPE_CHECKING:
    import pytest


@dataclass
class Case:
    """One variant in one form: its names, and the measured figures.

    Args:
        group: Group of cases that are compared.
        name: Name of the test, with all varied values in brackets.
        nodeid: The same, after the name of the file.
        params: Varied values by name; `variant` is the name of the variant.
        measured: Figures by name.
    """

    group: str
    name: str
    nodeid: str
    params: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)


def case_of(item: "pytest.Item", group: str | None, params: Mapping[str, Any]) -> Case:
    """Return a case of a test: its own parameters, and those given."""
    own = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    ids = [item.callspec.id] if hasattr(item, "callspec") and item.callspec.id else []
    ids += [_in_words(name, value) for name, value in params.items()]
    bracket = f"[{'-'.join(ids)}]" if ids else ""
    base = getattr(item, "originalname", None) or item.name
    path, _, _ = item.nodeid.rpartition("::")
    name = f"{base}{bracket}"
    return Case(group or base.removeprefix("test_"), name, f"{path}::{name}", own | dict(params))


def record(benchmark: Any, case: Case, timed: Timed) -> None:
    """Add a case to those of pytest-benchmark, as if it were a test of its own.

    Its fixture takes one call; a copy of it, under another name, takes one more.
    """
    own = copy.copy(benchmark)
    own.name, own.fullname, own.group = case.name, case.nodeid, case.group
    own.param = case.name.partition("[")[2].removesuffix("]") or None
    own.params, own.extra_info = case.params, case.measured
    stats = own._make_stats(timed.iterations)
    for seconds in timed.seconds:
        stats.update(seconds)


def described(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the machine as torch sees it, and the format of what is recorded."""
    return {
        "format": BENCH_FORMAT,
        "torch": torch.__version__,
        "threads": threads,
        "mkldnn": torch.backends.mkldnn.is_available(),
        "gpu": _gpu_name(device),
        "matmul_flops_per_s": matmul_rates(),
    }


def content_of(
    cases: Iterable[tuple[Case, Timed | None]], description: dict[str, Any]
) -> dict[str, Any]:
    """Return cases in the JSON format of pytest-benchmark."""
    benchmarks = [
        {
            "group": case.group,
            "name": case.name,
            "fullname": case.nodeid,
            "params": case.params,
            "extra_info": case.measured,
            "stats": {"median": timed.median if timed else None},
        }
        for case, timed in cases
    ]
    machine = {"processor": platform.processor(), "python_version": platform.python_version()}
    return {"machine_info": machine, KEY: description, "benchmarks": benchmarks}


def mark_used(benchmark: Any) -> None:
    """Keep pytest-benchmark from warning of a fixture that was not used."""
    benchmark._mode = benchmark._mode or "measure"


def _gpu_name(device: torch.device) -> str | None:
    """Return the name of a GPU; None for another device, and for a GPU that this machine has not."""
    there = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    return torch.cuda.get_device_name(device) if there else None


def _in_words(name: str, value: Any) -> str:
    if value is True:
        return name
    return f"not {name}" if value is False else str(value)
